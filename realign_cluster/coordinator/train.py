"""`realign train`, one sitting from the command to the report: data, cluster, plan, generations of ranks, result.

Puts the parts together and owns the order of things; each part decides or does its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from realign_cluster.coordinator.cluster import Cluster, connect
from realign_cluster.coordinator.curate import FAILED, INTERRUPTED, NODES_MISSING, versions_of
from realign_cluster.coordinator.home import ClusterHome
from realign_cluster.coordinator.inbox import Inbox
from realign_cluster.coordinator.node_address import NodeAddress
from realign_cluster.coordinator.part_store import PartStore
from realign_cluster.coordinator.progress import Dashboard
from realign_cluster.coordinator.rank_board import RankBoard
from realign_cluster.coordinator.rank_hosts import rank_hosts
from realign_cluster.coordinator.share_watch import ShareWatch
from realign_cluster.coordinator.stop import Stop, StopAsked, signals
from realign_cluster.coordinator.train_desk import TrainDesk
from realign_cluster.coordinator.train_engine import TrainEngine
from realign_cluster.coordinator.train_finish import finish_training
from realign_cluster.coordinator.train_hearing import Hearing
from realign_cluster.coordinator.train_history import read_train_history
from realign_cluster.coordinator.train_planning import Planner, may_come_back
from realign_cluster.coordinator.train_record import TrainRun, open_train_run
from realign_cluster.coordinator.train_request import TrainRequest
from realign_cluster.coordinator.train_track import check_tracker, open_tracking
from realign_cluster.coordinator.training_session import TrainingSession, open_training_session
from realign_cluster.domain.errors import RealignError
from realign_cluster.domain.ids import Epoch, NodeName
from realign_cluster.domain.recovery_commands import Finish
from realign_cluster.domain.recovery_events import Opened
from realign_cluster.domain.run_memory import Options
from realign_cluster.domain.training import TrainJob
from realign_cluster.domain.world import StatePart
from realign_cluster.store.reference_cache import ReferenceCache, reference_key, row_digests
from realign_cluster.store.space import StorageFull


async def train(
    request: TrainRequest,
    *,
    dashboard: Dashboard,
    command: str | None = None,
    home: ClusterHome | None = None,
    stop: Stop | None = None,
) -> int:
    """Runs or continues the run; returns the exit code. Raises RealignError for what must stop it before it starts.

    `stop`: of whoever runs this as a part of something and hears the signals; without one they are heard here.
    """
    check_tracker(request.track)
    stop, heard_here = stop or Stop(), stop is None
    with signals(stop) if heard_here else contextlib.nullcontext():
        try:
            run = await asyncio.to_thread(open_train_run, request, command, stop.raise_if_asked)
        except StopAsked:
            return _interrupted(dashboard)
        with contextlib.closing(run):
            dashboard.start(f"train {run.folder.path}")
            try:
                if run.finished_summary is not None:
                    dashboard.note("this run is complete: nothing is left to do", "info")
                    dashboard.event("summary", run.finished_summary)
                    return 0
                return await _Sitting(request, run, dashboard, stop, home or ClusterHome()).run()
            except (RealignError, OSError):
                if not run.started:
                    run.abandon()
                raise
            except StopAsked:
                return _interrupted(dashboard)
            finally:
                dashboard.stop()


def _interrupted(dashboard: Dashboard) -> int:
    dashboard.note("interrupted: run the same command again to go on", "warning")
    dashboard.event("summary", {"state": "incomplete", "reason": "interrupted"})
    return INTERRUPTED


class _Sitting:
    def __init__(
        self, request: TrainRequest, run: TrainRun, dashboard: Dashboard, stop: Stop, home: ClusterHome
    ) -> None:
        self._request = request
        self._run = run
        self._dashboard = dashboard
        self._stop = stop
        self._home = home
        self._versions: dict[str, dict[str, str]] = {}

    async def run(self) -> int:
        if self._is_trained():
            return await self._finish(Finish(state="complete", reason="all was done in an earlier sitting"))
        async with connect(
            self._request.hostfile,
            discover=self._request.discover,
            home=self._home,
            min_nodes=self._request.min_nodes,
            allow_skew=frozenset(self._request.allow_skew),
        ) as cluster:
            for link in cluster.nodes:
                self._versions[link.name] = versions_of(link)
                for warning in link.warnings:
                    self._dashboard.note(warning, "warning")
            for missing in cluster.missing:
                self._dashboard.note(f"{missing.name} is not there: {missing.reason}", "warning")
            tracking = await asyncio.to_thread(open_tracking, self._run, self._warning_from_threads())
            with contextlib.closing(TrainDesk(self._run.ledger, tracking)) as desk:
                await self._known_reference(desk)
                try:
                    finish = await self._train(cluster, desk)
                finally:
                    await self._share_reference(desk)
        return await self._finish(finish)

    def _is_trained(self) -> bool:
        """Whether only the result is to be written: no node is needed for that."""
        step = self._run.memory.complete_step
        return step is not None and any(manifest.step == step for manifest in self._run.checkpoints.manifests())

    def _warning_from_threads(self) -> Callable[[str], None]:
        loop = asyncio.get_running_loop()

        def warn(text: str) -> None:
            loop.call_soon_threadsafe(self._dashboard.note, text, "warning")

        return warn

    async def _train(self, cluster: Cluster, desk: TrainDesk) -> Finish:
        run, request = self._run, self._request
        planner = Planner(cluster, run, request, now=datetime.now(UTC))
        nodes = self._first_nodes(cluster, planner)
        job = self._pinned(cluster)
        inbox: Inbox = asyncio.Queue()
        epoch = await desk.do(lambda: run.ledger.open_epoch(time.time()))
        addresses = _addresses(cluster)
        sessions = {
            address.name: open_training_session(
                address,
                run_id=run.run_id,
                epoch=epoch,
                job=job,
                model=run.model,
                data=run.data,
                inbox=inbox,
                environment=request.environment,
                nice=request.nice,
            )
            for address in addresses
        }
        board = RankBoard(sessions, steps=job.steps, first=run.ledger.last_step())
        parts, shares = PartStore(run, sessions), ShareWatch(fixed=job.reproducible)
        note = self._dashboard.note
        engine = TrainEngine(
            desk=desk,
            sessions=sessions,
            rank_hosts=rank_hosts(cluster.hostfile, addresses),
            inbox=inbox,
            hearing=Hearing(parts=parts, shares=shares, board=board, welcome=planner.welcome, note=note),
            parts=parts,
            shares=shares,
            board=board,
            replan=planner.again,
            note=note,
            show=lambda engine: self._dashboard.update(board.snapshot(stopping=self._stop.asked)),
            interrupted=lambda: self._stop.asked,
        )
        opened = Opened(
            at=asyncio.get_running_loop().time(),
            epoch=Epoch(epoch),
            options=Options(
                steps=job.steps,
                nodes=tuple(map(NodeName, nodes)),
                reproducible=job.reproducible,
                wait_seconds=request.wait_seconds,
                least_nodes=request.min_nodes,
                snapshot_every=job.snapshot_every or 1,
                kl_budget=job.kl_budget,
                kl_action=job.kl.action if job.kl is not None else "soften",
            ),
            memory=run.memory,
            checkpoints=await asyncio.to_thread(self._checkpoints),
        )
        self._stop.listen(inbox)
        try:
            return await self._drive(engine, sessions, opened)
        finally:
            with contextlib.suppress(StorageFull):
                await desk.do(lambda: run.ledger.close_epoch(time.time()))
            measured = await asyncio.to_thread(lambda: read_train_history(run.ledger).speeds())
            await asyncio.to_thread(planner.learn, measured)

    def _first_nodes(self, cluster: Cluster, planner: Planner) -> tuple[str, ...]:
        """Those of a plan for who is there. Raises UsageError when it is refused, unless the run was begun with nodes
        that are away now and may come back: recovery waits for them.
        """
        plan, begun = planner.first(), self._run.memory.world
        if plan.approach == "refused" and begun is not None and may_come_back(cluster, begun.nodes):
            return begun.nodes
        plan.raise_if_refused()
        world = planner.world(plan)
        for left_out in plan.left_out:
            if left_out.name not in {missing.name for missing in cluster.missing}:
                self._dashboard.note(f"{left_out.name} is left out: {left_out.reason}", "info")
        self._run.folder.write_json(self._run.folder.plan, plan.to_json())
        self._dashboard.event("plan", plan.to_json())
        for line in plan.why:
            self._dashboard.note(line, "debug")
        for line in plan.cautions:
            self._dashboard.note(line, "warning")
        return world.nodes

    async def _drive(self, engine: TrainEngine, sessions: dict[NodeName, TrainingSession], opened: Opened) -> Finish:
        tasks = [asyncio.create_task(session.run()) for session in sessions.values()]
        try:
            return await engine.run(opened)
        finally:
            self._stop.listen(None)
            await asyncio.gather(*(session.release("the run is over") for session in sessions.values()))
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _known_reference(self, desk: TrainDesk) -> None:
        """What another run of this cluster has computed with the same model, of the same rows."""
        job = self._run.job
        if not job.needs_reference:
            return

        def find() -> list[tuple[int, float, float]]:
            with contextlib.closing(ReferenceCache(self._references)) as cache:
                return cache.find(reference_key(job), row_digests(self._run.data.folder))

        try:
            found = await desk.do(find)
        except sqlite3.Error as error:
            self._dashboard.note(
                f"{self._references} cannot be read, what is in it is computed again: {error}", "warning"
            )
            return
        await desk.add_reference(found, lambda why: self._dashboard.note(f"{why}; waiting for room", "warning"))
        rows = self._run.prepared.rows + self._run.prepared.valid_rows
        if known := len(desk.reference()):
            self._dashboard.note(f"reference log-probabilities of {known:,} of {rows:,} rows are known", "info")

    async def _share_reference(self, desk: TrainDesk) -> None:
        job = self._run.job
        if not job.needs_reference:
            return

        def add() -> None:
            values = {row: (chosen, rejected) for row, chosen, rejected in desk.reference()}
            with contextlib.suppress(sqlite3.Error), contextlib.closing(ReferenceCache(self._references)) as cache:
                cache.add(reference_key(job), row_digests(self._run.data.folder), values)

        await desk.do(add)

    @property
    def _references(self) -> Path:
        return self._home.folder / "references.sqlite"

    def _pinned(self, cluster: Cluster) -> TrainJob:
        """A reproducible run computes with the same kernels and threads in every sitting."""
        job = self._run.job
        if not job.reproducible:
            return job
        core_type = self._run.ledger.meta("blas_core_type")
        if core_type is None:
            core_type = cluster.nodes[0].info.device.blas_core_type
            self._run.ledger.set_meta("blas_core_type", core_type)
        return job.model_copy(update={"blas_threads": 1, "blas_core_type": core_type})

    def _checkpoints(self) -> tuple[StatePart, ...]:
        """Parts of the checkpoints in the run folder that may be started from; what is damaged is said and left out.
        What was given up goes: a sitting that was killed may have left it.
        """
        self._run.checkpoints.forget(self._run.memory.go_backs)
        manifests, skipped = self._run.checkpoints.to_start_from()
        for corrupt in skipped:
            self._dashboard.note(f"a checkpoint is left out: {corrupt}", "warning")
        return tuple(part for manifest in manifests for part in manifest.parts)

    async def _finish(self, finish: Finish) -> int:
        summary = await finish_training(self._run, finish, self._versions, note=self._dashboard.note, stop=self._stop)
        code = {"complete": 0, "incomplete": FAILED, "failed": FAILED}[str(summary["state"])]
        if self._stop.asked and finish.state == "incomplete":
            self._dashboard.note("interrupted: run the same command again to go on", "warning")
            code = INTERRUPTED
        elif finish.state == "incomplete":
            self._dashboard.note(f"{finish.reason}\n  fix: the same command goes on where it stopped", "error")
            code = NODES_MISSING if not self._run.started else FAILED
        elif finish.state == "failed":
            self._dashboard.note(finish.reason, "error")
        self._dashboard.event("summary", summary)
        return code


def _addresses(cluster: Cluster) -> list[NodeAddress]:
    """Of those that are there, and of those that may come later."""
    there = [link.address for link in cluster.nodes]
    return there + [missing.address for missing in cluster.missing if missing.address is not None]
