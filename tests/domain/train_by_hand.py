"""A training run moved by hand, one event at a time, for tests of recovery."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from realign_cluster.domain import recovery_commands as c
from realign_cluster.domain import recovery_events as e
from realign_cluster.domain.ids import Epoch, NodeName
from realign_cluster.domain.recovery import Recovery
from realign_cluster.domain.recovery_policy import RecoveryPolicy
from realign_cluster.domain.run_memory import Options, RunMemory
from realign_cluster.domain.section_limits import SectionName
from realign_cluster.domain.training import ParallelMode
from realign_cluster.domain.world import StateKind, StatePart, WorldPlan

C = TypeVar("C")


def part(
    step: int, index: int = 0, of: int = 1, kind: StateKind = "snapshot", generation: int = 1, digest: str = ""
) -> StatePart:
    layout = "whole" if of == 1 else f"sharded-{of}"
    digest = digest or f"{step}.{index}"
    return StatePart(
        kind=kind, step=step, part=index, parts=of, layout=layout, digest=digest, bytes=10, generation=generation
    )


class TrainRun:
    """Answers Replan by itself, unless fewer nodes than `least` are there. `said` has every command so far, `new` those
    since the last call.
    """

    def __init__(
        self,
        nodes: str = "ab",
        *,
        parallel: ParallelMode = "data",
        least: int = 1,
        steps: int = 100,
        policy: RecoveryPolicy | None = None,
        memory: RunMemory | None = None,
        checkpoints: Iterable[StatePart] = (),
        now: float = 0.0,
        **options: Any,
    ) -> None:
        self.now = now
        self.parallel: ParallelMode = parallel
        self.least = least
        self.nodes = nodes
        self.said: list[c.Command] = []
        self.new: list[c.Command] = []
        opened = e.Opened(
            at=now,
            epoch=Epoch(1),
            options=Options(steps=steps, nodes=tuple(NodeName(node) for node in nodes), **options),
            memory=memory or RunMemory(),
            checkpoints=tuple(checkpoints),
        )
        self.policy = policy or RecoveryPolicy()
        self.recovery = Recovery(opened, self.policy)
        self.handle(opened)

    # --- what happens

    def handle(self, event: e.Event) -> None:
        commands = self.recovery.apply(event)
        self.said += commands
        self.new += commands
        for command in commands:
            if isinstance(command, c.Replan):
                self.handle(self.replanned(command.nodes))

    def replanned(self, nodes: tuple[NodeName, ...]) -> e.Replanned:
        if len(nodes) < self.least:
            return e.Replanned(at=self.now, nodes=nodes, plan=None, refusal=f"{len(nodes)} nodes are too few")
        chosen = nodes[:1] if self.parallel == "single" else nodes
        shares = tuple(1 / len(chosen) for _ in chosen)
        return e.Replanned(
            at=self.now, nodes=nodes, plan=WorldPlan(parallel=self.parallel, nodes=chosen, shares=shares)
        )

    def event(self, kind: type[Any], nodes: str, **values: Any) -> list[c.Command]:
        """The same of each of these nodes, of the generation that runs."""
        self.new = []
        for node in nodes:
            self.handle(kind(at=self.now, node=NodeName(node), **values))
        return self.new

    def of_rank(self, kind: type[Any], nodes: str, **values: Any) -> list[c.Command]:
        return self.event(kind, nodes, **({"generation": self.generation} | values))

    def pass_time(self, seconds: float) -> list[c.Command]:
        """With the looks that come every half second."""
        self.new = []
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + 0.5)
            self.handle(e.Tick(at=self.now))
        return self.new

    def ready(self, nodes: str, parts: Sequence[StatePart] = (), **values: Any) -> list[c.Command]:
        return self.event(e.NodeReady, nodes, parts=tuple(parts), **values)

    def lose(self, nodes: str, clean: bool = False) -> list[c.Command]:
        return self.event(e.NodeLost, nodes, reason="not heard for 3.1 s", clean=clean)

    def bar(self, nodes: str, reason: str = "it is held by another run") -> list[c.Command]:
        return self.event(e.NodeLost, nodes, reason=reason, barred=True)

    def keep(self, nodes: str, *parts: StatePart) -> list[c.Command]:
        new: list[c.Command] = []
        for each in parts:
            new += self.event(e.PartKept, nodes, part=each)
        self.new = new
        return new

    def step(self, step: int, nodes: str = "", seconds: float = 1.0) -> list[c.Command]:
        """All ranks do it."""
        self.now += seconds
        return self.of_rank(e.StepDone, nodes or self.running, step=step, seconds=seconds)

    def section(
        self, nodes: str, section: SectionName, step: int = 1, patience: float | None = None
    ) -> list[c.Command]:
        """`patience`: as the policy has it, after pieces of a second."""
        seconds = patience or self.policy.sections.of(section, 1.0)
        return self.of_rank(e.RankSection, nodes, section=section, step=step, patience_seconds=seconds)

    def exits(
        self, nodes: str, reason: str = "killed by signal 9", asked: bool = False, **values: Any
    ) -> list[c.Command]:
        return self.of_rank(e.RankExited, nodes, reason=reason, asked=asked, **values)

    def obeys(self, nodes: str, **values: Any) -> list[c.Command]:
        """The rank dies of KillRank."""
        return self.exits(nodes, "killed by signal 15", asked=True, **values)

    def fails(self, nodes: str, code: str, message: str = "it went wrong", fatal: bool = False) -> list[c.Command]:
        return self.of_rank(e.RankFailed, nodes, code=code, message=message, fatal=fatal)

    def ends(self, nodes: str, step: int, digest: str = "w", complete: bool = True) -> list[c.Command]:
        new = self.of_rank(e.RankEnded, nodes, step=step, complete=complete, reason="", digest=digest)
        self.new = new + self.exits(nodes, "exit 0")
        return self.new

    def goes(self) -> list[c.Command]:
        """The generation that was started loads and joins."""
        nodes = self.running
        self.of_rank(e.RankLoaded, nodes)
        return self.of_rank(e.RankJoined, nodes)

    def begin(self, steps: int = 0) -> TrainRun:
        """All nodes come, their ranks do some steps, and each leaves a snapshot after each."""
        self.ready(self.nodes)
        self.goes()
        for step in range(1, steps + 1):
            self.step(step)
            self.keep(self.running, part(step))
        return self

    # --- what came of it

    @property
    def generation(self) -> int:
        return max((start.spec.generation for start in self.all(c.StartRank)), default=0)

    @property
    def starts(self) -> list[c.StartRank]:
        """Of the newest generation."""
        return [start for start in self.all(c.StartRank) if start.spec.generation == self.generation]

    @property
    def running(self) -> str:
        return "".join(start.node for start in self.starts)

    @property
    def finish(self) -> c.Finish | None:
        return next(iter(self.all(c.Finish)), None)

    @property
    def memory(self) -> RunMemory:
        return self.all(c.Remember)[-1].memory

    def all(self, kind: type[C]) -> list[C]:
        return [command for command in self.said if isinstance(command, kind)]

    def last(self, kind: type[C]) -> list[C]:
        """Of what was done last."""
        return [command for command in self.new if isinstance(command, kind)]

    def killed(self) -> str:
        """Whose ranks, in what was done last."""
        return "".join(kill.node for kill in self.last(c.KillRank))

    def notes(self) -> str:
        return "\n".join(note.text for note in self.all(c.NoteLine))
