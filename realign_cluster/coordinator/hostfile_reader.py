"""Reads a hostfile from disk; what it means is `domain.hostfile`'s."""

from __future__ import annotations

import shlex
from pathlib import Path

from realign_cluster.domain.hostfile import Hostfile, HostfileError, parse_hostfile


def read_hostfile(path: Path) -> Hostfile:
    """Raises HostfileError (exit 2) when the file cannot be read or is wrong."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise HostfileError(
            f"cannot read the hostfile {path}: {error.strerror}",
            "name a file that is there, such as hostfiles/local.json; hostfiles/README.md explains what goes into one",
        ) from None
    except UnicodeDecodeError as error:
        raise HostfileError(f"{path}: not UTF-8 text (byte {error.start})", "save the file as UTF-8") from None
    return parse_hostfile(text, str(path))


def naming_hostfile(text: str, path: Path | None) -> str:
    """`text` with its "--hostfile FILE" made a command that can be pasted."""
    return text if path is None else text.replace("--hostfile FILE", f"--hostfile {shlex.quote(str(path))}")
