"""What the daemon tells its rank: the orders it starts with, and what may come while it works.

A reading thread fills the mailbox; the training loop looks into it between steps and waits in it for Go. Must not know
MLX.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from realign_cluster.domain.training import TrainJob
from realign_cluster.domain.world import Go, RankSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """The first frame. Folders exist; `cores` is this rank's share of the machine."""

    job: TrainJob
    spec: RankSpec
    model_dir: Path
    data_dir: Path
    state_dir: Path
    cache_dir: Path
    cores: int
    run_id: str

    @classmethod
    def from_frame(cls, frame: Mapping[str, Any]) -> Orders:
        """Raises pydantic.ValidationError and KeyError for what this version does not understand."""
        return cls(
            job=TrainJob.model_validate_json(frame["job"]),
            spec=RankSpec.model_validate_json(frame["spec"]),
            model_dir=Path(frame["model_dir"]),
            data_dir=Path(frame["data_dir"]),
            state_dir=Path(frame["state_dir"]),
            cache_dir=Path(frame["cache_dir"]),
            cores=int(frame["cores"]),
            run_id=str(frame["run_id"]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """New shares, to be used once every rank has this version."""

    version: int
    shares: tuple[float, ...]


class Mailbox:
    """Safe between the reading thread and the training loop."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._go: Go | None = None
        self._stop = False
        self._shares: list[Shares] = []
        self._reference: dict[int, tuple[float, float]] = {}

    def put(self, frame: Mapping[str, Any]) -> bool:
        """Takes a frame of the daemon's. False for one of an unknown kind."""
        with self._changed:
            match frame.get("op"):
                case "go":
                    self._go = Go(generation=frame["generation"], addresses=tuple(frame["addresses"]))
                case "stop":
                    self._stop = True
                case "shares":
                    self._shares.append(Shares(version=int(frame["version"]), shares=tuple(frame["shares"])))
                case "reference" if self._go is not None:
                    pass  # Go is said again, with what is known by then: what ranks start with must be equal on all
                case "reference":
                    self._reference.update({int(row): (chosen, rejected) for row, chosen, rejected in frame["rows"]})
                case _:
                    return False
            self._changed.notify_all()
            return True

    def wait_for_go(self) -> Go | None:
        """None: stop instead."""
        with self._changed:
            self._changed.wait_for(lambda: self._go is not None or self._stop)
            return None if self._stop else self._go

    @property
    def stop_asked(self) -> bool:
        with self._changed:
            return self._stop

    @property
    def reference(self) -> dict[int, tuple[float, float]]:
        """Reference log-probabilities of (chosen, rejected) by row, as far as the coordinator has them."""
        with self._changed:
            return dict(self._reference)

    def newest_shares(self) -> Shares | None:
        with self._changed:
            return self._shares[-1] if self._shares else None

    def shares_of(self, version: int) -> Shares:
        with self._changed:
            return next(shares for shares in self._shares if shares.version == version)
