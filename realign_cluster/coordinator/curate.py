"""`realign curate`, one sitting from the command to the report: intake, cluster, plan, scoring, output.

Puts the parts together and owns the order of things; each part decides or does its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import replace
from functools import partial

from realign_cluster.coordinator.admission import Admission
from realign_cluster.coordinator.cluster import Cluster, NodeLink, connect, open_session
from realign_cluster.coordinator.engine import Engine, Outcome
from realign_cluster.coordinator.finish import finish_run
from realign_cluster.coordinator.group_session import open_group
from realign_cluster.coordinator.home import ClusterHome
from realign_cluster.coordinator.inbox import Inbox
from realign_cluster.coordinator.ledger_desk import LedgerDesk
from realign_cluster.coordinator.node_address import NodeAddress
from realign_cluster.coordinator.planning import facts_of_model, open_calibrations, plan_for
from realign_cluster.coordinator.progress import Dashboard, Phase, ProgressSnapshot
from realign_cluster.coordinator.request import CurateRequest
from realign_cluster.coordinator.roster import Roster
from realign_cluster.coordinator.run_record import Run, first_rows, open_run
from realign_cluster.coordinator.samples import make_canaries, make_samples, role_lengths
from realign_cluster.coordinator.session import ScoringNode, Session
from realign_cluster.coordinator.snapshot import Snapshots
from realign_cluster.coordinator.speeds import Speeds
from realign_cluster.coordinator.stop import Stop, StopAsked, signals
from realign_cluster.coordinator.tokens import tokens_per_byte
from realign_cluster.domain.errors import NodesMissing, RealignError, UsageError
from realign_cluster.domain.events import RunOpened
from realign_cluster.domain.group import Place
from realign_cluster.domain.ids import NodeName
from realign_cluster.domain.job import ScoreJob, bytes_beside
from realign_cluster.domain.plan import Plan
from realign_cluster.domain.plan_facts import WorkFacts
from realign_cluster.domain.report import WorkerReport
from realign_cluster.store.intake import ScanProgress, scan_into_ledger
from realign_cluster.store.space import RESERVE_BYTES, StorageFull, free_bytes

SAMPLE_ROWS = 256
ROOM_BYTES = 32 << 20  # beyond the reserve: below it no lease is given out
INTERRUPTED = 130
FAILED = 1
NODES_MISSING = 3


async def curate(
    request: CurateRequest,
    *,
    dashboard: Dashboard,
    command: str | None = None,
    home: ClusterHome | None = None,
    stop: Stop | None = None,
) -> int:
    """Runs or continues the run; returns the exit code. Raises RealignError for what must stop it before it starts.

    `stop`: of whoever runs this as a part of something and hears the signals; without one they are heard here.
    `command` is what the user typed, for run.toml.
    """
    run = await asyncio.to_thread(open_run, request, command)
    stop, heard_here = stop or Stop(), stop is None
    with contextlib.closing(run), signals(stop) if heard_here else contextlib.nullcontext():
        if run.finished_summary is not None:
            dashboard.start(f"curate {run.folder.path}")
            dashboard.note("this run is complete: nothing is left to do", "info")
            dashboard.event("summary", run.finished_summary)
            dashboard.stop()
            return 0
        dashboard.start(f"curate {run.folder.path}")
        try:
            return await _Sitting(request, run, dashboard, stop, home or ClusterHome()).run()
        except (RealignError, OSError):
            if not run.started:
                run.abandon()
            raise
        except StopAsked:
            dashboard.note("interrupted: run the same command again to go on", "warning")
            dashboard.event("summary", {"state": "incomplete", "reason": "interrupted"})
            return INTERRUPTED
        finally:
            dashboard.stop()


class _Sitting:
    """From an open run folder to the exit code."""

    def __init__(self, request: CurateRequest, run: Run, dashboard: Dashboard, stop: Stop, home: ClusterHome) -> None:
        self._request = request
        self._run = run
        self._dashboard = dashboard
        self._stop = stop
        self._home = home
        self._desk = LedgerDesk(run.ledger, run.sources, with_row_ids="generate" in request.kinds)
        self._node_versions: dict[str, dict[str, str]] = {}

    async def run(self) -> int:
        with contextlib.closing(self._desk):
            return await self._run_to_the_end()

    async def _run_to_the_end(self) -> int:
        sample = await asyncio.to_thread(first_rows, self._run.sources, SAMPLE_ROWS)
        per_byte = await self._tokens_per_byte(sample)
        if self._run.ledger.scanned:
            await self._scan(per_byte)
        if not self._run.ledger.scanned or self._run.ledger.counters().pending_units:
            async with connect(
                self._request.hostfile,
                discover=self._request.discover,
                home=self._home,
                min_nodes=self._request.min_nodes,
                allow_skew=frozenset(self._request.allow_skew),
            ) as cluster:
                for link in cluster.nodes:
                    self._node_versions[link.name] = versions_of(link)
                    for warning in link.warnings:
                        self._dashboard.note(warning, "warning")
                for missing in cluster.missing:
                    self._dashboard.note(f"{missing.name} is not there: {missing.reason}", "warning")
                if not self._run.ledger.scanned:
                    await self._scan(per_byte)
                outcome = await self._score(cluster, sample, per_byte)
        else:
            outcome = Outcome(complete=True, reason="every row was scored in an earlier sitting")
        return await self._finish(outcome)

    # --- intake ---

    async def _tokens_per_byte(self, sample: list[bytes]) -> float:
        """The first scan's value holds for the run: units are cut by it."""
        if (known := self._run.ledger.meta("tokens_per_byte")) is not None:
            return float(known)
        folder = self._run.model.folder if self._run.model is not None else None
        return await asyncio.to_thread(tokens_per_byte, folder, sample, self._request.kinds, self._request.fields)

    async def _scan(self, per_byte: float) -> None:
        """Checks and cuts what is not scanned yet; of a scan that is complete, that the input is still the same."""

        def progress(now: ScanProgress) -> None:
            self._stop.raise_if_asked()
            part = now.bytes_done / max(1, now.bytes_total)
            self._show_phase("scanning", now.rows, None, f"{now.what}, {now.rows:,} rows, {part:.0%}")

        run, request = self._run, self._request
        await self._desk.do(
            lambda: scan_into_ledger(
                run.ledger, run.sources, request.kinds, request.fields, run.scan_options(per_byte), progress
            )
        )

    # --- scoring ---

    async def _score(self, cluster: Cluster, sample: list[bytes], per_byte: float) -> Outcome:
        request = self._request
        lengths = role_lengths(sample, request.kinds, request.fields)
        samples = make_samples(lengths, request.fields)
        job = self._job(cluster)
        with contextlib.closing(open_calibrations(self._home)) as store:
            speeds = Speeds(store, job)
            speeds.look_up(cluster)
            plan = self._plan(cluster, speeds, lengths, per_byte)
            speeds.plan = plan
            engine, sessions, opened = await self._open(cluster, job, samples, speeds, plan)
            outcome = await self._drive(engine, sessions, opened)
            busy = {item.node: item.busy_seconds for item in await asyncio.to_thread(self._run.ledger.nodes_summary)}
            speeds.learn(
                {
                    view.name: (view.cost_per_second, busy.get(view.name, 0.0))
                    for view in engine.scheduler.node_states().values()
                    if view.units_committed
                }
            )
        return outcome

    def _job(self, cluster: Cluster) -> ScoreJob:
        job = self._request.job(
            self._run.spec, self._run.beside, canaries=make_canaries(self._request.kinds, self._request.fields)
        )
        if not self._request.reproducible:
            return job
        reference = self._reference()  # of an earlier sitting: its kernels are the run's, whoever is first today
        core_type = reference[1].blas_core_type if reference else cluster.nodes[0].info.device.blas_core_type
        return job.model_copy(update={"blas_threads": 1, "blas_core_type": core_type})

    def _plan(self, cluster: Cluster, speeds: Speeds, lengths: list[dict[str, int]], per_byte: float) -> Plan:
        counters = self._run.ledger.counters()
        answer = self._request.answer_tokens
        tokens = sorted(int(sum(item.values()) * per_byte) + answer for item in lengths) or [answer]
        work = WorkFacts(
            kinds=self._request.kinds,
            rows=counters.pending_rows,
            cost=counters.pending_cost,
            longest_row_tokens=min(self._request.max_tokens, max(1, tokens[-1])),
            median_row_tokens=min(self._request.max_tokens, max(1, tokens[len(tokens) // 2])),
            backend=cluster.hostfile.backend if cluster.hostfile is not None else "any",
            sharding=self._request.shard,
            whole_model_only=self._request.whole_model_only,
            beside_bytes=bytes_beside(self._run.spec, self._run.beside),
        )
        folder = self._run.model.folder if self._run.model is not None else None
        plan = plan_for(cluster, facts_of_model(self._run.spec, folder), work, speeds.known)
        for left_out in plan.left_out:
            if left_out.name not in {missing.name for missing in cluster.missing}:
                self._dashboard.note(f"{left_out.name} is left out: {left_out.reason}", "warning")
        plan.raise_if_refused()
        if plan.group is not None:
            self._dashboard.note(f"one copy of {plan.model}: {plan.group.text()}", "info")
        self._run.plan = plan.to_json()
        self._run.folder.write_json(self._run.folder.plan, self._run.plan)
        self._dashboard.event("plan", plan.to_json())
        return plan

    async def _open(
        self, cluster: Cluster, job: ScoreJob, samples: list[bytes], speeds: Speeds, plan: Plan
    ) -> tuple[Engine, dict[NodeName, ScoringNode], RunOpened]:
        run = self._run
        inbox: Inbox = asyncio.Queue()
        opened_epoch = await self._desk.open_epoch(asyncio.get_running_loop().time())
        left_out = {item.name for item in plan.left_out}
        addresses = [link.address for link in cluster.nodes if link.name not in left_out]
        addresses += [missing.address for missing in cluster.missing if missing.address is not None]  # may come later

        def session(address: NodeAddress, inbox: Inbox, place: Place | None = None) -> Session:
            return open_session(
                address,
                run_id=run.run_id,
                epoch=opened_epoch.epoch,
                job=job,
                measure=speeds.measure_mode(address.name) if place is None or place.leads else "none",
                samples=samples,
                model=run.model,
                others=run.others,
                inbox=inbox,
                environment=self._request.environment,
                nice=self._request.nice,
                place=place,
            )

        sessions: dict[NodeName, ScoringNode] = {}
        if plan.group is not None:
            group = open_group(plan.group, cluster, opened_epoch.epoch, session, inbox)
            sessions[group.name] = group
        else:
            sessions.update({address.name: session(address, inbox) for address in addresses})
        roster = Roster(sessions)
        counters = run.ledger.counters()
        snapshots = Snapshots(
            rows_total=counters.rows,
            rows_before=counters.committed_rows,
            expected_shares=plan.shares(),
            memory_limits={address.name: address.memory_limit_bytes for address in addresses},
        )

        def show(engine: Engine) -> None:
            phase: Phase = "scoring" if any(line.state == "ready" for line in roster.lines.values()) else "loading"
            self._dashboard.update(snapshots.take("draining" if self._stop.asked else phase, roster, engine.scheduler))

        engine = Engine(
            desk=self._desk,
            sessions=sessions,
            inbox=inbox,
            admission=Admission(
                canaries=len(job.canaries),
                reproducible=job.reproducible,
                speed_of=speeds.speed_of,
                remember_reference=self._remember_reference,
                reference=self._reference(),
            ),
            roster=roster,
            note=self._dashboard.note,
            show=show,
            room=self._room,
            stop_asked=lambda: self._stop.asked,
        )
        self._stop.listen(inbox)
        planned = tuple(NodeName(node.name) for node in plan.nodes)
        opened = replace(opened_epoch, planned_cost_per_second=plan.cost_per_second, planned_nodes=planned)
        return engine, sessions, opened

    async def _drive(self, engine: Engine, sessions: dict[NodeName, ScoringNode], opened: RunOpened) -> Outcome:
        tasks = [asyncio.create_task(session.run()) for session in sessions.values()]
        try:
            return await engine.run(opened)
        finally:
            self._stop.listen(None)
            await asyncio.gather(*(session.release("the run is over") for session in sessions.values()))
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _room(self) -> tuple[bool, int]:
        needed = RESERVE_BYTES + ROOM_BYTES
        free = free_bytes(self._run.folder.path)
        return free >= needed, max(0, needed - free)

    def _reference(self) -> tuple[NodeName, WorkerReport] | None:
        stored = self._run.ledger.meta("canary_reference")
        return (NodeName(stored["node"]), WorkerReport.model_validate(stored["report"])) if stored else None

    def _remember_reference(self, node: NodeName, report: WorkerReport) -> None:
        """For later sittings; on a full disk this one goes on without it, and the next one chooses its own."""
        stored = {"node": node, "report": report.model_dump(mode="json")}
        with contextlib.suppress(StorageFull):
            self._run.ledger.set_meta("canary_reference", stored)

    # --- the end ---

    async def _finish(self, outcome: Outcome) -> int:
        def progress(rows: int) -> None:
            self._stop.raise_if_asked()
            self._show_phase("writing", rows, None, "writing the output in input order")

        if outcome.no_nodes and not self._run.started:
            raise _why_not_started(outcome)
        if outcome.interrupted:
            self._stop.asked = False  # that one was heard; the next one stops the writing of the summary
        finish = partial(finish_run, self._run, progress=progress, node_versions=self._node_versions)
        try:
            try:
                summary = await asyncio.to_thread(finish, outcome)
            except StopAsked:
                outcome = Outcome(complete=False, reason="interrupted while writing the output", interrupted=True)
                summary = await asyncio.to_thread(finish, outcome)
        except StorageFull as full:
            fix = "free some room there, then run the same command again: no row is scored twice"
            raise StorageFull(full.path, full.needed_bytes, fix) from full
        finally:
            with contextlib.suppress(StorageFull):  # it then reads like a sitting that was killed
                await self._desk.do(lambda: self._run.ledger.close_epoch(time.time()))
        for line, level in summary.notes:
            self._dashboard.note(line, level)
        code = 0 if summary.body["state"] == "complete" else FAILED
        if outcome.interrupted:
            self._dashboard.note("interrupted: run the same command again to go on", "warning")
            code = INTERRUPTED
        elif outcome.no_nodes:
            fix = "see realign doctor; the same command goes on where it stopped"
            self._dashboard.note(f"{outcome.reason}\n  fix: {fix}", "error")
            code = NODES_MISSING
        self._dashboard.event("summary", summary.body)
        return code

    def _show_phase(self, phase: Phase, rows: int, total: int | None, message: str) -> None:
        self._dashboard.update(ProgressSnapshot(phase=phase, rows_done=rows, rows_total=total, message=message))


def _why_not_started(outcome: Outcome) -> RealignError:
    if outcome.fault_of_the_job is not None:
        return UsageError(outcome.fault_of_the_job)
    return NodesMissing(outcome.reason, "see realign doctor")


def versions_of(link: NodeLink) -> dict[str, str]:
    versions = link.info.versions
    return {
        "chip": link.info.device.chip,
        "project": versions.project,
        "mlx": versions.mlx,
        "mlx_lm": versions.mlx_lm,
        "python": versions.python,
        "platform": versions.platform,
        "blas": link.info.device.blas,
    }
