"""The wheel that `--install` copies to hosts: a host gets exactly the code that launches it.

Built from the source tree if there is one, else put together again from what is installed here.
"""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import realign_cluster
from realign_cluster.domain.errors import RealignError

DISTRIBUTION = "realign-cluster"
BUILD_SECONDS = 300
_NOT_IN_WHEELS = ("INSTALLER", "REQUESTED", "direct_url.json", "RECORD")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    name: str  # file name
    data: bytes

    @property
    def digest(self) -> str:
        """SHA-256 of the file, hex."""
        return hashlib.sha256(self.data).hexdigest()


def build_wheel(folder: Path) -> Wheel:
    """Make the wheel in `folder`. Raises RealignError with what the build said."""
    source = source_tree()
    path = _build(source, folder) if source else repack_installed(folder)
    return Wheel(name=path.name, data=path.read_bytes())


def source_tree() -> Path | None:
    """The project's folder when this runs from a checkout."""
    root = Path(realign_cluster.__file__).resolve().parents[1]
    return root if (root / "pyproject.toml").exists() and (root / "launcher").is_dir() else None


def _build(source: Path, folder: Path) -> Path:
    if find_spec("hatchling"):  # no isolated environment, so no registry
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    else:
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder), str(source)]
    try:
        done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise RealignError(
            f"building the wheel took longer than {BUILD_SECONDS} s", f"try: {' '.join(command)}"
        ) from None
    built = sorted(folder.glob("*.whl"))
    if done.returncode or not built:
        raise RealignError(
            f"the wheel was not built: {(done.stderr or done.stdout).strip()[-1000:]}",
            f"see what it says: cd {source} && {' '.join(command)} (pip install hatchling builds without a registry)",
        )
    return built[-1]


def repack_installed(folder: Path, distribution: str = DISTRIBUTION) -> Path:
    """The wheel of an installed distribution, from its own list of files (PyPA's binary distribution format)."""
    try:
        found = metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        raise RealignError(f"{distribution} is not installed here", f"pip install {distribution}") from None
    tag = next((line[5:] for line in (found.read_text("WHEEL") or "").splitlines() if line.startswith("Tag: ")), "")
    files = [
        file
        for file in found.files or []
        if ".." not in file.parts and "__pycache__" not in file.parts and file.name not in _NOT_IN_WHEELS
    ]
    info = next((file.parts[0] for file in files if file.parts[0].endswith(".dist-info")), "")
    if not tag or not info or not any(file.suffix == ".py" for file in files):
        raise RealignError(
            f"{distribution} is installed in a way that no wheel can be made from",
            "install it from a wheel or a checkout",
        )
    path = folder / f"{info.removesuffix('.dist-info')}-{tag}.whl"
    record: list[str] = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for file in sorted(files, key=str):
            data = file.read_binary()
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            record.append(f"{file.as_posix()},sha256={digest},{len(data)}")
            wheel.writestr(zipfile.ZipInfo(file.as_posix(), (2020, 1, 1, 0, 0, 0)), data)
        wheel.writestr(
            zipfile.ZipInfo(f"{info}/RECORD", (2020, 1, 1, 0, 0, 0)), "\n".join([*record, f"{info}/RECORD,,", ""])
        )
    return path
