"""State parts between nodes and the run folder: pulls checkpoints in, sends them out, lets nodes fetch from each other.

Each answers with the event that it came to. Decides nothing but which checkpoints a commit leaves in the folder.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog

from realign_cluster.coordinator.part_transfer import read_part, send_part
from realign_cluster.coordinator.train_record import TrainRun
from realign_cluster.coordinator.training_session import TrainingSession
from realign_cluster.domain.errors import RealignError
from realign_cluster.domain.ids import NodeName
from realign_cluster.domain.rank_report import Failed
from realign_cluster.domain.recovery_events import (
    CheckpointStored,
    Event,
    FetchFailed,
    PartFetched,
    StoreFailed,
)
from realign_cluster.domain.run_memory import GoBack
from realign_cluster.domain.world import StatePart
from realign_cluster.rpc.part_stream import PartUnfit
from realign_cluster.rpc.versions import local_versions
from realign_cluster.store.checkpoints import CheckpointManifest
from realign_cluster.store.state_part import Corrupt

log = structlog.get_logger()

ROWS_SHOWN = 12


class PartStore:
    """For one sitting. Transfers run side by side; a node fetches a part from one place at a time."""

    def __init__(
        self, run: TrainRun, sessions: Mapping[NodeName, TrainingSession], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._run = run
        self._sessions = sessions
        self._clock = clock
        self._sources: dict[tuple[NodeName, str], NodeName | None] = {}
        self._storing = asyncio.Lock()

    async def fetch(self, node: NodeName, part: StatePart, source: NodeName | None) -> Event | None:
        """None: the node will say how it went."""
        self._sources[(node, part.name)] = source
        if source is not None:
            peer = self._sessions[source].address
            same = source == node
            self._sessions[node].fetch_part(part, "" if same else peer.address, "" if same else peer.node_id)
            return None
        try:
            folder = self._run.checkpoints.path(part.step)
            await send_part(self._sessions[node].address, self._run.run_id, part, folder)
        except Corrupt as error:
            return self._failed(node, part, None, str(error), corrupt=True)
        except (RealignError, OSError) as error:
            return self._failed(node, part, None, str(error), corrupt=False)
        return PartFetched(at=self._clock(), node=node, part=part)

    def fetched(self, node: NodeName, part: StatePart, error: str, *, corrupt: bool, now: float) -> Event:
        """What the node says of a fetch."""
        source = self._sources.get((node, part.name))
        if not error:
            return PartFetched(at=now, node=node, part=part)
        return FetchFailed(at=now, node=node, part=part, source=source, reason=error, corrupt=corrupt)

    def _failed(self, node: NodeName, part: StatePart, source: NodeName | None, reason: str, *, corrupt: bool) -> Event:
        return FetchFailed(at=self._clock(), node=node, part=part, source=source, reason=reason, corrupt=corrupt)

    async def store(self, step: int, parts: Sequence[tuple[NodeName, StatePart]]) -> Event:
        """Pulls a checkpoint into the run folder, and lets older ones go."""
        async with self._storing:
            checkpoints = self._run.checkpoints
            unfit: list[tuple[NodeName, StatePart]] = []
            try:
                await asyncio.to_thread(checkpoints.begin, step)
                for node, part in parts:
                    try:
                        await self._receive(node, part)
                    except (PartUnfit, Corrupt):
                        unfit.append((node, part))
                        raise
                manifest = await asyncio.to_thread(manifest_of, self._run, step, [part for _, part in parts])
                committed = await asyncio.to_thread(checkpoints.commit, manifest)
                if not isinstance(committed, CheckpointManifest):
                    raise committed
            except (RealignError, OSError) as error:
                await asyncio.to_thread(checkpoints.abandon, step)
                return StoreFailed(at=self._clock(), step=step, reason=str(error), corrupt=tuple(unfit))
            await self._tidy(self._prune)
            return CheckpointStored(at=self._clock(), step=step, parts=tuple(part for _, part in parts))

    async def _receive(self, node: NodeName, part: StatePart) -> None:
        """Raises PartUnfit and Corrupt: what the node has is to blame; else RealignError or OSError."""
        received = await read_part(self._sessions[node].address, self._run.run_id, part, self._run.checkpoints.receive)
        if not isinstance(received, StatePart):
            raise received

    async def forget(self, go_backs: Sequence[GoBack]) -> None:
        """Checkpoints of courses that were given up."""
        async with self._storing:
            await self._tidy(lambda: self._run.checkpoints.forget(go_backs))

    async def _tidy(self, remove: Callable[[], object]) -> None:
        """What cannot be removed now is when it is tried again: training goes on."""
        try:
            await asyncio.to_thread(remove)
        except OSError as error:
            log.warning("old checkpoints could not be removed", why=str(error))

    def _prune(self) -> None:
        """The run may have to go back to the last checkpoint within its KL budget."""
        job, within = self._run.job, self._run.memory.within_budget_step
        self._run.checkpoints.prune(
            job.keep_checkpoints,
            within_budget_step=within if job.kl is not None else None,
            kl_budget=job.kl_budget,
        )

    def explain(self, failure: Failed) -> str:
        """A rank's word on why it failed, with the user's own files and lines where it names rows."""
        rows: Any = failure.details.get("rows")
        message = self._run.prepared.in_the_users_files(failure.message)
        if not isinstance(rows, list) or not rows:
            return message
        places = [self._run.prepared.where("train", int(row)) for row in rows[:ROWS_SHOWN]]
        more = f" and {len(rows) - ROWS_SHOWN} more" if len(rows) > ROWS_SHOWN else ""
        return (
            f"{message}; its batch: {', '.join(places)}{more}\n"
            "  fix: look at these rows, or a lower --learning-rate, or --clip-norm; the last good checkpoint is kept"
        )


def manifest_of(run: TrainRun, step: int, parts: Sequence[StatePart]) -> CheckpointManifest:
    """With what the ledger says of it. What was measured on a course that was given up counts for nothing."""
    losses = {
        at: body["metrics"]["loss"]
        for at, body in _measured(run, "evaluated", step).items()
        if "loss" in body["metrics"]
    }
    divergences = _measured(run, "divergence", step)
    versions, memory = local_versions(), run.memory
    return CheckpointManifest(
        step=step,
        layout=parts[0].layout,
        parts=tuple(parts),
        run=run.run_id,
        world=memory.world if parts[0].generation == memory.generation else None,
        learning_rate_factor=memory.learning_rate_factor,
        beta_factor=memory.beta_factor,
        versions={"project": versions.project, "mlx": versions.mlx, "mlx_lm": versions.mlx_lm},
        validation_loss=losses[max(losses)] if losses else None,
        kl=divergences[max(divergences)]["kl"] if divergences else None,
        validation_step=max(losses, default=None),
    )


def _measured(run: TrainRun, kind: str, until: int) -> dict[int, dict[str, Any]]:
    """By step, up to `until`: what the run as it stands came by, and of a step that was done again the last."""
    backs = run.memory.go_backs
    return {
        each.step: each.body
        for each in run.ledger.measurements(kind)
        if each.step <= until and not any(back.gives_up(each.generation, each.step) for back in backs)
    }
