"""Where a daemon keeps what it must not lose: names of files and folders, nothing of what is in them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from realign_cluster.domain.errors import UsageError


def default_state() -> Path:
    """~/.realign/node, or under REALIGN_HOME where that is set."""
    home = os.environ.get("REALIGN_HOME")
    return (Path(home) if home else Path.home() / ".realign") / "node"


@dataclass(frozen=True, slots=True)
class StateFolder:
    root: Path

    @classmethod
    def at(cls, path: Path) -> StateFolder:
        """The folder by its real path, made if need be, with its sub-folders; nobody else may look into it.

        Raises UsageError when it cannot be.
        """
        folder = cls(path.expanduser().resolve())
        try:
            for each in (folder.root, folder.models, folder.spool, folder.training, folder.logs):
                each.mkdir(parents=True, exist_ok=True, mode=0o700)
            if folder.root.stat().st_mode & 0o077:
                folder.root.chmod(0o700)
        except OSError as error:
            raise UsageError(
                f"the state folder {folder.root} cannot be used: {error.strerror}",
                "choose one that you may write to: --state DIR",
            ) from error
        return folder

    @property
    def identity(self) -> Path:
        return self.root / "identity.json"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def spool(self) -> Path:
        return self.root / "spool"

    @property
    def training(self) -> Path:
        """States of training runs, and tokenised data."""
        return self.root / "training"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def daemon_log(self) -> Path:
        return self.logs / "daemon.log"

    @property
    def worker_log(self) -> Path:
        return self.logs / "worker.log"

    @property
    def crash_log(self) -> Path:
        """What a detached daemon wrote to its standard error: empty unless it crashed."""
        return self.logs / "daemon.stderr"

    @property
    def lock(self) -> Path:
        return self.root / "daemon.lock"

    @property
    def daemon(self) -> Path:
        """pid, port, started, name of the daemon that serves from here; absent when none does."""
        return self.root / "daemon.json"

    @property
    def device(self) -> Path:
        return self.root / "device.json"

    @property
    def pending_key(self) -> Path:
        """The key of a signing request that has not been answered yet."""
        return self.root / "node.key.new"
