"""The shell scripts a host is given, one per step. Pure text: what runs them is `shells`.

POSIX sh, since the host's login shell may be anything; every value is quoted. `~` and `$HOME` are expanded on the host.
"""

from __future__ import annotations

import shlex

from realign_cluster.domain.hostfile import Host

VENV = "~/.realign/venv"
VENV_PYTHON = f"{VENV}/bin/python"
WHEELS = "~/.realign/wheels"
DEFAULT_PYTHON = "python3"

# Runs on any Python 3, also one too old for the project: it has to say so.
CHECK_CODE = """
import json, platform, sys
try:
    from importlib.metadata import version, PackageNotFoundError
except ImportError:
    version = None
found = {}
for name in ("realign-cluster", "mlx", "mlx-lm"):
    try:
        found[name] = version(name)
    except Exception:
        found[name] = ""
print(json.dumps({"python": platform.python_version(), "executable": sys.executable, "system": platform.system(),
                  "machine": platform.machine(), "packages": found}))
""".strip()


def path_word(path: str) -> str:
    """`path` as one word of a shell command; a leading ~ or $HOME is the host's home."""
    for prefix in ("~/", "$HOME/"):
        if path.startswith(prefix):
            return f'"$HOME"/{shlex.quote(path[len(prefix) :])}'
    return shlex.quote(path)


def check(pythons: tuple[str, ...]) -> str:
    """Prints a line of JSON for each of `pythons` that is there, in order."""
    lines = [f"code={shlex.quote(CHECK_CODE)}"]
    lines += [f'command -v {path_word(p)} >/dev/null 2>&1 && {path_word(p)} -c "$code"' for p in pythons]
    return "\n".join([*lines, "true"])


def daemon(python: str, *arguments: str, state: str | None = None) -> str:
    """A `realignd` command under an explicit Python."""
    words = [path_word(python), "-m", "realign_cluster.cli.realignd", *(shlex.quote(a) for a in arguments)]
    if state is not None:
        words += ["--state", path_word(state)]
    return " ".join(words)


def status(host: Host, python: str) -> str:
    return daemon(python, "status", "--json", state=host.state)


def request(host: Host, python: str) -> str:
    """Makes the node's key where it is missing and prints its signing request."""
    return daemon(python, "request", "--name", host.name, state=host.state)


def enrol(host: Host, python: str) -> str:
    """Takes the signed certificate on standard input."""
    return daemon(python, "enrol", state=host.state)


def start(host: Host, python: str) -> str:
    """Starts the daemon detached; prints where it serves. The hostfile's variables travel to workers with each job."""
    return daemon(python, "run", "--port", str(host.port), "--name", host.name, "--detach", state=host.state)


def stop(host: Host, python: str) -> str:
    return daemon(python, "stop", state=host.state)


def installed_wheel() -> str:
    """Prints the hash of the wheel that was installed last, if any."""
    return f"cat {path_word(VENV)}/realign-wheel.sha256 2>/dev/null || true"


def copy_wheel(wheel: str) -> str:
    """Takes the wheel on standard input."""
    target = f"{path_word(WHEELS)}/{shlex.quote(wheel)}"
    return f"mkdir -p {path_word(WHEELS)} && cat > {target}.part && mv {target}.part {target}"


def install(python: str, wheel: str, digest: str) -> str:
    """Makes the private environment if it is missing and installs the copied wheel into it.

    Twice, because pip leaves a package of the same version alone: first with what it depends on, then itself again.
    """
    file = f"{path_word(WHEELS)}/{shlex.quote(wheel)}"
    pip = f"{path_word(VENV_PYTHON)} -m pip install --quiet --disable-pip-version-check"
    return "\n".join(
        [
            "set -e",
            f"[ -x {path_word(VENV_PYTHON)} ] || {path_word(python)} -m venv {path_word(VENV)}",
            f"{pip} {file} >&2",
            f"{pip} --force-reinstall --no-deps {file} >&2",
            f"echo {shlex.quote(digest)} > {path_word(VENV)}/realign-wheel.sha256",
        ]
    )
