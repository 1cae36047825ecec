"""A worker's way into the group that holds its model: opens the weights, waits to be told, joins, cuts.

The leader goes on as a session like any other; the others only follow it. Must not know frames or processes.
"""

from __future__ import annotations

import faulthandler
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import mlx.core as mx

from realign_cluster.domain.errors import RealignError
from realign_cluster.domain.group import Place
from realign_cluster.domain.job import ScoreJob
from realign_cluster.domain.report import WorkerReport
from realign_cluster.scoring import device
from realign_cluster.scoring.cpu_kernels import cpu_kernels
from realign_cluster.scoring.errors import JobRefused
from realign_cluster.scoring.model import Weights, open_weights
from realign_cluster.scoring.part import Part, follow, make_part
from realign_cluster.scoring.session import Phase
from realign_cluster.sharding.group import Group, WorldMismatch, describe_group, free_port, make_group

JOIN_SECONDS = 60.0  # MLX's ring gives up after half of it where it connects, and never where it accepts

Meet = Callable[[int], Sequence[str]]  # says on which port this rank will listen, answers with all addresses


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    weights: Weights
    part: Part
    group: Group


def join(job: ScoreJob, model_dir: Path, place: Place, *, cores: int, phase: Phase, meet: Meet) -> Membership:
    """Raises JobRefused, with the fix, where another try would not help; RuntimeError when the group was not made."""
    phase("load", job.model.name, 0.0)
    device.set_blas_threads(job.blas_threads or cores)
    weights = open_weights(model_dir, job, place)
    phase("wait", "the group", 0.0)
    addresses = meet(free_port())
    phase("join", "the group", 0.0)
    try:
        group = _make(place, addresses)
    except (RealignError, WorldMismatch) as error:
        raise JobRefused("group", str(error)) from error
    try:
        part = make_part(weights.model, place.world, group, lambda: phase("load", job.model.name, 0.5))
    except RealignError as error:
        raise JobRefused(
            "load",
            f"{job.model.name} cannot be cut: {error.message}\n"
            f"  fix: --shard {'tensor' if place.world.parallel == 'pipeline' else 'pipeline'}, or a node that holds it",
        ) from error
    return Membership(weights=weights, part=part, group=group)


def _make(place: Place, addresses: Sequence[str]) -> Group:
    """No thread of ours could watch meanwhile: C code ends the process when it takes too long."""
    faulthandler.dump_traceback_later(JOIN_SECONDS, exit=True)
    try:
        with tempfile.TemporaryDirectory(prefix="realign-group-") as folder:
            describe_group(place.world, place.rank, addresses, Path(folder) / "hosts.json")
            return make_group(place.world, place.rank)
    finally:
        faulthandler.cancel_dump_traceback_later()


class Follower:
    """A rank that does not lead."""

    def __init__(self, member: Membership) -> None:
        weights, blas = member.weights, device.find_blas()
        self._member = member
        self.report = WorkerReport(
            model_hash=weights.hash,
            dtype=weights.dtype,
            load_seconds=time.monotonic() - weights.started,
            weights_bytes=weights.bytes,
            peak_bytes=int(mx.get_peak_memory()),
            device=device.device_name(),
            blas=blas.name,
            blas_core_type=blas.core_type,
            blas_threads=blas.threads,
        )

    def follow(self, progress: Callable[[], None]) -> NoReturn:
        part = self._member.part
        with cpu_kernels(part.model) if device.backend() == "cpu" else nullcontext():
            follow(part, self._member.group, progress)
