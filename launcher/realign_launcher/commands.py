"""The shell scripts a host is given, one per step. Pure text: what runs them is `shells`.

POSIX sh, since the host's login shell may be anything; every value is quoted. `~` and `$HOME` are expanded on the host.
"""

from __future__ import annotations

import shlex

from realign_cluster.domain.hostfile import LOCAL_NAMES, Host

VENV = "~/.realign/venv"
VENV_PYTHON = f"{VENV}/bin/python"
WHEELS = "~/.realign/wheels"
DEFAULT_PYTHON = "python3"

# One line, for any Python from 3.8: one too old for the project has to say so.
CHECK_CODE = "; ".join(
    (
        "import importlib.metadata as m, json, platform, sys",
        'have = {d.metadata["Name"]: d.version for d in m.distributions()}',
        'packages = {name: have.get(name, "") for name in ("realign-cluster", "mlx", "mlx-lm")}',
        'print(json.dumps({"index": int(sys.argv[1]), "python": platform.python_version(), "packages": packages}))',
    )
)


def path_word(path: str) -> str:
    """`path` as one word of a shell command; a leading ~ or $HOME is the host's home."""
    for prefix in ("~/", "$HOME/"):
        if path.startswith(prefix):
            return f'"$HOME"/{shlex.quote(path[len(prefix) :])}'
    return shlex.quote(path)


def check(pythons: tuple[str, ...]) -> str:
    """Prints a line of JSON for each of `pythons` that is there, with its index."""
    code = shlex.quote(CHECK_CODE)
    words = [path_word(path) for path in pythons]
    tries = [f"if command -v {w} >/dev/null; then {w} -c {code} {i}; fi" for i, w in enumerate(words)]
    return "; ".join(tries)


def daemon(python: str, *arguments: str, state: str | None = None) -> str:
    """A `realignd` command under an explicit Python."""
    words = [path_word(python), "-m", "realign_cluster.cli.realignd", *(shlex.quote(a) for a in arguments)]
    if state is not None:
        words += ["--state", path_word(state)]
    return " ".join(words)


def status(host: Host, python: str) -> str:
    """Prints a line of JSON, then the node's certificate if it has one."""
    certificate = path_word(f"{host.state.rstrip('/')}/node.crt")
    return f"{daemon(python, 'status', '--json', state=host.state)}; cat {certificate} 2>/dev/null || true"


def request(host: Host, python: str) -> str:
    """Makes the node's key where it is missing and prints its signing request."""
    return daemon(python, "request", "--name", host.name, state=host.state)


def enrol(host: Host, python: str) -> str:
    """Takes the signed certificate on standard input."""
    return daemon(python, "enrol", state=host.state)


def start(host: Host, python: str) -> str:
    """Starts the daemon detached; prints where it serves. The hostfile's variables travel to workers with each job."""
    options = ["--port", str(host.port), "--name", host.name, "--detach"]
    if host.cores is not None:
        options += ["--cores", str(host.cores)]
    if host.address in LOCAL_NAMES:
        options += ["--host", "127.0.0.1"]  # nobody else's business
    return daemon(python, "run", *options, state=host.state)


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
    return " && ".join(
        [
            f"{{ [ -x {path_word(VENV_PYTHON)} ] || {path_word(python)} -m venv {path_word(VENV)}; }}",
            f"{pip} {file} >&2",
            f"{pip} --force-reinstall --no-deps {file} >&2",
            f"echo {shlex.quote(digest)} > {path_word(VENV)}/realign-wheel.sha256",
        ]
    )
