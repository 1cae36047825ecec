"""The training ranks of this node, one generation after the other: started, told, listened to, ended, and reported.

What a rank says is kept until the coordinator has recorded it. Knows neither streams nor what the reports mean, but for
the section and step that a beat shows. MLX lives in the rank only.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import psutil
import structlog

from realign_cluster.domain.wired import stranded_bytes
from realign_cluster.node.logs import OutputLog
from realign_cluster.node.orders import RankStart
from realign_cluster.node.worker_process import Exit, WorkerProcess
from realign_cluster.rpc.frames import FrameError
from realign_cluster.rpc.pb import node_pb2 as pb

log = structlog.get_logger()

DRAIN_SECONDS = 0.3  # an end is known half a second after it
GRACE_SECONDS = 10.0  # for a rank that is asked to end
TERM_SECONDS = 1.0  # from SIGTERM to SIGKILL
BEAT_SECONDS = 1.0
SILENCE_SECONDS = 5.0  # of this daemon, that end its rank: before the coordinator counts it as dead
STOPPED_SECONDS = 4.0  # that a rank may be stopped by a signal: nothing in it can notice that
STOPPED_LOOK_SECONDS = 0.5
WIRED_SECONDS = 5.0  # that the system may take to give wired memory back
WIRED_LOOK_SECONDS = 0.25
MAX_WAITING = 20_000  # reports that the coordinator has not recorded
MAX_WAITING_BYTES = 32 * 1024**2  # also of one report: a message has to carry it


class Rank:
    """One process from its start to its end. `place` is (section, step) as it said last."""

    def __init__(self, start: RankStart, hear: Callable[[Rank, bytes], None]) -> None:
        self.start = start
        self.place = ("", 0)
        self.said = 0  # reports
        self.kept = 0  # of these, for the coordinator
        self.deaf = False  # too much of it waits: the rest is not heard
        self.pid = 0  # stays when it has ended
        self.ending = ""  # why it is to end, if it is
        self.fault = ""  # why it was killed though nobody asked
        self._hear = hear
        self._worker: WorkerProcess | None = None
        self._early: list[Mapping[str, Any]] = []  # told before there was a process
        self._grace_seconds = 0.0
        self._term_seconds = TERM_SECONDS
        self._end = asyncio.Event()
        self._end_now = asyncio.Event()

    @property
    def alive(self) -> bool:
        return self._worker is not None

    def tell(self, frame: Mapping[str, Any]) -> None:
        if self._worker is None:
            self._early.append(frame)
        else:
            self._worker.write(frame)

    def stop(self, reason: str, grace_seconds: float) -> None:
        """Asks it to end, and makes it after the grace. Of several reasons the first is reported."""
        if not self.ending:
            self.ending, self._grace_seconds = reason, grace_seconds
            self._end.set()

    def kill(self, reason: str, term_seconds: float) -> None:
        """SIGTERM now, SIGKILL after so long."""
        if not self._end_now.is_set():
            self._term_seconds = term_seconds
        self.ending = self.ending or reason
        self._end.set()
        self._end_now.set()

    async def run(self, cores: int, output: OutputLog) -> Exit | str:
        """How it ended, or why it did not begin."""
        if self.ending:
            return "never started"
        try:
            worker = await WorkerProcess.start(self.start.launch, cores, output)
        except OSError as error:
            return f"could not be started: {error.strerror or error}"
        self._worker, self.pid = worker, worker.pid
        spec = self.start.spec
        output.begin_process(f"rank {spec.rank} of generation {spec.generation}, pid {worker.pid}")
        worker.write(self.start.frame(cores))
        for frame in self._early:
            worker.write(frame)
        beside = (self._beat(worker), self._make_it_end(worker), self._kill_if_stopped(worker))
        tasks = [asyncio.create_task(each) for each in beside]
        try:
            return await worker.follow(self._take, DRAIN_SECONDS)
        finally:
            for task in tasks:
                task.cancel()
            await worker.close()
            self._worker = None

    async def _beat(self, worker: WorkerProcess) -> None:
        while True:
            worker.write({"op": "beat", "within_seconds": SILENCE_SECONDS})
            await asyncio.sleep(BEAT_SECONDS)

    async def _make_it_end(self, worker: WorkerProcess) -> None:
        await self._end.wait()
        if not self._end_now.is_set():
            worker.write({"op": "stop"})
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._end_now.wait(), self._grace_seconds)
        worker.terminate()
        await asyncio.sleep(self._term_seconds)
        worker.kill()

    async def _kill_if_stopped(self, worker: WorkerProcess) -> None:
        looks, ran = 0, 0
        while looks * STOPPED_LOOK_SECONDS < STOPPED_SECONDS:
            await asyncio.sleep(STOPPED_LOOK_SECONDS)
            before, ran = ran, _switches_when_stopped(worker.pid)
            looks = looks + 1 if ran and ran == before else 0
        self.fault = f"it was stopped by a signal for {STOPPED_SECONDS:g} s"
        worker.kill()

    def _take(self, frame: dict[str, Any]) -> None:
        """Raises FrameError."""
        if frame.get("op") != "report":
            raise FrameError(f"an unknown op {frame.get('op')!r}")
        body = bytes(frame["body"])
        if len(body) > MAX_WAITING_BYTES:
            raise FrameError(f"a report of {len(body)} bytes is larger than {MAX_WAITING_BYTES}")
        try:
            report = json.loads(body)
            section = str(report.get("section", self.place[0]))
            self.place = (section, int(report.get("step", self.place[1])))
        except (ValueError, TypeError, AttributeError) as error:
            raise FrameError(f"a report is not a JSON object: {error}") from error
        self.said += 1
        self._hear(self, body)


def _switches_when_stopped(pid: int) -> int:
    """How often a process that is stopped had been scheduled: the same number again if it did not run in between; 0: it
    is not stopped.
    """
    try:
        process = psutil.Process(pid)
        return sum(process.num_ctx_switches()) if process.status() == psutil.STATUS_STOPPED else 0
    except psutil.Error:
        return 0


def wired_bytes() -> int | None:
    """Memory that cannot be paged out; None where the system does not say (all but macOS)."""
    wired = getattr(psutil.virtual_memory(), "wired", None)
    return int(wired) if wired is not None else None


class RankKeeper:
    """`send` reaches the coordinator if a stream is there; `make_way` ends the node's scoring worker; `wired` is the
    machine's wired memory.

    Not thread-safe: one event loop owns it.
    """

    def __init__(
        self,
        *,
        output: OutputLog,
        cores: int,
        send: Callable[[pb.NodeMessage], None],
        make_way: Callable[[], Awaitable[None]],
        wired: Callable[[], int | None] = wired_bytes,
    ) -> None:
        self._wired = wired
        self._output = output
        self._cores = cores
        self._send = send
        self._make_way = make_way
        self._run_id = ""
        self._rank: Rank | None = None  # of the highest generation; stays when it has ended
        self._heeded: set[Rank] = set()  # not ended, and of the run that is served
        self._task: asyncio.Task[None] | None = None
        self._unrecorded: deque[pb.NodeMessage] = deque()  # reports and ends, by generation and sequence
        self._unrecorded_bytes = 0
        self._wedged_pid = 0

    @property
    def generation(self) -> int:
        """The highest that was started here for this run; 0: none."""
        return self._rank.start.spec.generation if self._rank is not None else 0

    @property
    def running(self) -> bool:
        """Whether the rank of that generation is there, or about to be."""
        return self._rank in self._heeded

    @property
    def busy(self) -> bool:
        """Whether any rank is there, also of a run that has left."""
        return self._task is not None and not self._task.done()

    @property
    def pid(self) -> int:
        """Of the rank's process; 0 while there is none."""
        return self._rank.pid if self._rank is not None and self._rank.alive else 0

    def beat(self) -> pb.RankBeat | None:
        """Without `orders`."""
        if (rank := self._rank) is None:
            return None
        section, step = rank.place
        return pb.RankBeat(
            generation=self.generation,
            rank=rank.start.spec.rank,
            section=section,
            step=step,
            progress=rank.said,
            pid=self.pid,
        )

    # --- what the run asks ------------------------------------------------------------------------------------------

    def serve(self, run_id: str) -> None:
        """From now on ranks are of this run. What is left of another one ends and is forgotten."""
        if run_id == self._run_id:
            return
        self.end("its run has left this node")
        self._run_id, self._rank = run_id, None
        self._heeded.clear()
        self._unrecorded.clear()
        self._unrecorded_bytes = 0

    def start(self, start: RankStart) -> bool:
        """Whether the generation is the highest so far: then what is left of older ones dies, and it begins."""
        if start.spec.generation <= self.generation:
            return False
        self.end(f"generation {start.spec.generation} takes over")
        self._rank = Rank(start, self._hear)
        self._heeded.add(self._rank)
        self._task = asyncio.create_task(self._supervise(self._rank, self._task))
        return True

    def tell(self, frame: Mapping[str, Any]) -> None:
        if self._rank is not None and self.running:
            self._rank.tell(frame)

    def stop(self, reason: str, grace_seconds: float = GRACE_SECONDS) -> None:
        """Leaves the rank so much time for an end of its own."""
        if self._rank is not None and self.running:
            self._rank.stop(reason, grace_seconds)

    def end(self, reason: str, term_seconds: float = TERM_SECONDS) -> None:
        """Whatever the rank is doing: SIGTERM, then SIGKILL."""
        if self._rank is not None and self.running:
            self._rank.kill(reason, term_seconds)

    async def ended(self) -> None:
        """Returns once no rank is there. For after `end`."""
        while self._task is not None and self.busy:
            await asyncio.wait({self._task})

    def acknowledge(self, generation: int, sequence: int) -> None:
        while self._unrecorded and _number(self._unrecorded[0]) <= (generation, sequence):
            self._unrecorded_bytes -= self._unrecorded.popleft().ByteSize()

    def unrecorded(self) -> list[pb.NodeMessage]:
        """What the coordinator has to be told again after a reconnect, in order."""
        return list(self._unrecorded)

    # --- one rank after the other -----------------------------------------------------------------------------------

    async def _supervise(self, rank: Rank, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await before
        await self._make_way()
        if wedged := bool(self._wedged_pid) and psutil.pid_exists(self._wedged_pid):
            reason = f"a rank of an older generation, pid {self._wedged_pid}, cannot be killed: reboot this machine"
        else:
            wired = self._wired()
            end = await rank.run(self._cores, self._output)
            reason = end if isinstance(end, str) else end.reason
            reason = f"{rank.fault} ({reason})" if rank.fault else reason
            wedged = isinstance(end, Exit) and end.status is None
            self._wedged_pid = rank.pid if wedged else 0
            if not wedged and wired is not None and (stranded := await self._stranded(wired)):
                wedged = True
                reason += f"; {stranded / 1e9:.1f} GB of its wired memory did not come back: reboot this machine"
        self._say_ended(rank, f"{rank.ending} ({reason})" if rank.ending else reason, wedged)

    async def _stranded(self, before: int) -> int:
        """Wired bytes that are still missing after WIRED_SECONDS."""
        total = psutil.virtual_memory().total
        for _ in range(round(WIRED_SECONDS / WIRED_LOOK_SECONDS)):
            if not stranded_bytes(before, self._wired() or 0, total):
                return 0
            await asyncio.sleep(WIRED_LOOK_SECONDS)
        return stranded_bytes(before, self._wired() or 0, total)

    def _hear(self, rank: Rank, body: bytes) -> None:
        if rank not in self._heeded or rank.deaf:
            return
        if len(self._unrecorded) >= MAX_WAITING or self._unrecorded_bytes + len(body) > MAX_WAITING_BYTES:
            rank.deaf = True
            rank.kill(f"{len(self._unrecorded)} reports wait for the coordinator to record them", TERM_SECONDS)
            return
        spec = rank.start.spec
        rank.kept += 1
        self._keep(
            pb.NodeMessage(
                rank_report=pb.RankReport(generation=spec.generation, sequence=rank.kept, rank=spec.rank, body=body)
            )
        )

    def _say_ended(self, rank: Rank, reason: str, wedged: bool) -> None:
        spec = rank.start.spec
        log.warning("rank ended", run=rank.start.run_id, generation=spec.generation, rank=spec.rank, why=reason)
        if rank not in self._heeded:
            return
        self._heeded.discard(rank)
        rank.kept += 1
        exited = pb.RankExited(
            generation=spec.generation,
            sequence=rank.kept,
            rank=spec.rank,
            reason=reason,
            asked=bool(rank.ending),
            wedged=wedged,
            last_lines=self._output.last_lines(),
        )
        self._keep(pb.NodeMessage(rank_exited=exited))

    def _keep(self, message: pb.NodeMessage) -> None:
        self._unrecorded.append(message)
        self._unrecorded_bytes += message.ByteSize()
        self._send(message)


def _number(message: pb.NodeMessage) -> tuple[int, int]:
    said = message.rank_report if message.HasField("rank_report") else message.rank_exited
    return said.generation, said.sequence
