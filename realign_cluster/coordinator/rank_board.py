"""What the coordinator knows of a training run at this moment, for people. No decision reads it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from realign_cluster.coordinator.progress import NodeLine, Phase, ProgressSnapshot
from realign_cluster.coordinator.snapshot import Rate
from realign_cluster.domain import rank_report as r
from realign_cluster.domain.ids import NodeName
from realign_cluster.domain.world import RankSpec
from realign_cluster.rpc.pb import common_pb2 as common
from realign_cluster.rpc.pb import node_pb2 as pb

_GONE = frozenset({"lost", "refused"})


@dataclass(slots=True, kw_only=True)
class _Line:
    state: str = "connecting"
    detail: str = ""
    health: common.Health | None = None
    generation: int = 0
    share: float | None = None
    tokens: int = 0
    rate: Rate = field(default_factory=Rate)
    restarts: int = 0


class RankBoard:
    """One line per node. `steps` in all; `first` are done already."""

    def __init__(
        self, nodes: Iterable[NodeName], *, steps: int, first: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._lines = {node: _Line() for node in nodes}
        self._steps = steps
        self._clock = clock
        self._started = clock()
        self._rate = Rate()
        self.step = first
        self.loss: float | None = None
        self.validation: float | None = None
        self.generation = 0
        self._failures = 0
        self._training = False
        self._over = False  # a rank has ended by itself: all is done

    def nodes_of(self, generation: int) -> list[NodeName]:
        return [node for node, line in self._lines.items() if line.generation == generation]

    def connected(self, node: NodeName, info: common.NodeInfo) -> None:
        self._set(node, "connected", info.device.chip)

    def disconnected(self, node: NodeName, reason: str) -> None:
        self._set(node, "connecting", reason)

    def lost(self, node: NodeName, reason: str) -> None:
        self._set(node, "lost", reason)

    def barred(self, node: NodeName, message: str) -> None:
        self._set(node, "refused", message)

    def receiving(self, node: NodeName, sent: int, total: int) -> None:
        self._set(node, "loading", f"receiving: {sent / max(1, total):.0%} of {total / 1e9:.2f} GB")

    def ready(self, node: NodeName) -> None:
        self._set(node, "idle", "")

    def starting(self, node: NodeName, spec: RankSpec) -> None:
        line = self._lines[node]
        self.generation = spec.generation
        line.generation, line.share = spec.generation, spec.world.shares[spec.rank]
        self._set(node, "loading", f"rank {spec.rank} of generation {spec.generation}, from step {spec.start_step}")
        self._training = self._over = False

    def exited(self, node: NodeName, generation: int, reason: str, *, asked: bool, last_lines: str) -> None:
        line = self._lines[node]
        if generation == line.generation and line.state not in _GONE:
            line.state, line.detail = "idle", reason
            if not asked and last_lines:
                line.detail = f"{reason}: {last_lines.strip().splitlines()[-1]}"
        if not asked and reason.endswith("exit status 0"):
            self._over = True
        elif not asked:
            line.restarts += 1
            self._failures += 1
        self._training = False

    def beat(self, node: NodeName, beat: pb.NodeBeat) -> None:
        self._lines[node].health = beat.health

    def reported(self, node: NodeName, generation: int, report: r.RankReport) -> None:
        line = self._lines[node]
        if generation != line.generation:
            return
        match report:
            case r.Section(section="load"):
                pass
            case r.Section(section=section, step=step):
                line.state = "training" if section in ("step", "reduce", "snapshot") else section
                line.detail = f"step {step}" if section not in ("wait", "join") else ""
            case r.StepDone():
                self._training = True
                line.tokens += report.own_tokens
                if report.step > self.step or generation > 0:
                    self.step, self.loss = report.step, report.loss
            case r.Evaluated(metrics=metrics):
                self.validation = metrics.get("loss")

    def snapshot(self, *, stopping: bool) -> ProgressSnapshot:
        now = self._clock()
        rate = self._rate.at(now, self.step)
        if rate is not None and rate < 0:  # a state of before was gone back to
            self._rate, rate = Rate(), None
        phase: Phase = "draining" if stopping else "training" if self._training else "loading"
        if phase == "loading" and self._over:
            phase = "writing"
        elif phase == "loading" and self.generation > 1:
            phase = "recovering"
        parts = [f"generation {self.generation}"] if self.generation else []
        if self.loss is not None:
            parts.append(f"loss {self.loss:.4f}")
        if self.validation is not None:
            parts.append(f"validation {self.validation:.4f}")
        return ProgressSnapshot(
            phase=phase,
            rows_done=self.step,
            rows_total=self._steps,
            rows_per_second=rate,
            seconds_elapsed=now - self._started,
            seconds_left=(self._steps - self.step) / rate if rate else None,
            nodes=tuple(self._shown(node, line, now) for node, line in self._lines.items()),
            retries=self._failures,
            message=", ".join(parts),
            unit="steps",
            node_unit="tokens",
        )

    def _shown(self, node: NodeName, line: _Line, now: float) -> NodeLine:
        health = line.health
        return NodeLine(
            name=node,
            state=line.state,
            detail=line.detail,
            share=line.share,
            rows_done=line.tokens,
            rows_per_second=line.rate.at(now, line.tokens),
            retries=line.restarts,
            memory_bytes=int(health.worker_rss_bytes) if health is not None else None,
            thermal=health.thermal_pressure if health is not None else "",
        )

    def _set(self, node: NodeName, state: str, detail: str) -> None:
        line = self._lines[node]
        line.state, line.detail = state, detail
