"""What the coordinator knows of each node at this moment, for people. No decision reads it but "is anyone left"."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from realign_cluster.domain.ids import NodeName
from realign_cluster.rpc.pb import common_pb2 as common

State = Literal["connecting", "loading", "measuring", "ready", "restarting", "lost", "set aside", "refused"]
USABLE: frozenset[State] = frozenset({"loading", "measuring", "ready", "restarting"})
GONE: frozenset[State] = frozenset({"set aside", "refused"})
# refusals that no other node would put right
FAULTS_OF_THE_JOB = frozenset({"memory", "load", "chat", "model", "adapter", "reference"})


@dataclass(slots=True, kw_only=True)
class RosterLine:
    state: State = "connecting"
    detail: str = ""
    info: common.NodeInfo | None = None
    health: common.Health | None = None
    computing_attempt: int = 0
    cost_per_second: float | None = None
    rows: int = 0
    worker_restarts: int = 0
    refusal_code: str = ""
    problems: list[str] = field(default_factory=list)


class Roster:
    """One line per node, updated from the engine's loop."""

    def __init__(self, names: Iterable[NodeName]) -> None:
        self.lines: dict[NodeName, RosterLine] = {name: RosterLine() for name in names}
        self.rows_committed = 0
        self.rows_quarantined = 0
        self.retries = 0

    def connected(self, node: NodeName, info: common.NodeInfo) -> None:
        line = self.lines[node]
        line.info = info
        if line.state not in GONE:
            line.state, line.detail = "loading", "starting the worker"

    def disconnected(self, node: NodeName, reason: str) -> None:
        line = self.lines[node]
        if line.state not in GONE:
            line.detail = reason
            if line.state == "connecting" or line.info is None:
                line.state = "connecting"

    def lost(self, node: NodeName, reason: str) -> None:
        line = self.lines[node]
        if line.state not in GONE:
            line.state, line.detail = "lost", reason
            line.problems.append(reason)

    def barred(self, node: NodeName, message: str, code: str = "") -> None:
        line = self.lines[node]
        line.state, line.detail, line.refusal_code = "refused", message, code
        line.problems.append(message)

    def set_aside(self, node: NodeName, reason: str) -> None:
        line = self.lines[node]
        line.state, line.detail = "set aside", reason
        line.problems.append(reason)

    def receiving_model(self, node: NodeName, sent: int, total: int) -> None:
        line = self.lines[node]
        if line.state in GONE:
            return
        line.state, line.detail = "loading", f"receiving the model: {sent / max(1, total):.0%} of {total / 1e9:.2f} GB"

    def measuring(self, node: NodeName, what: str, fraction: float) -> None:
        line = self.lines[node]
        if line.state not in GONE:
            line.state, line.detail = "measuring", f"{what} {fraction:.0%}" if fraction else what

    def ready(self, node: NodeName, cost_per_second: float) -> None:
        line = self.lines[node]
        line.state, line.detail, line.cost_per_second = "ready", "", cost_per_second

    def worker_gone(self, node: NodeName, reason: str) -> None:
        line = self.lines[node]
        line.worker_restarts += 1
        self.retries += 1
        if line.state not in GONE:
            line.state, line.detail = "restarting", reason

    def beat(self, node: NodeName, health: common.Health, computing_attempt: int, phase: str) -> None:
        line = self.lines[node]
        line.health, line.computing_attempt = health, computing_attempt
        if line.state == "loading" and phase in ("load", "canary", "measure"):
            line.detail = {"load": "loading the model", "canary": "checking", "measure": "measuring"}[phase]

    def committed(self, node: NodeName, rows: int) -> None:
        self.lines[node].rows += rows
        self.rows_committed += rows

    def quarantined(self) -> None:
        self.rows_quarantined += 1

    def anyone_usable(self) -> bool:
        return any(line.state in USABLE for line in self.lines.values())

    def anyone_may_come(self) -> bool:
        return any(line.state not in GONE for line in self.lines.values())

    def fault_of_the_job(self) -> str | None:
        """What the nodes say against the model or the options, if each that was ever there refuses it for that."""
        there = [line for line in self.lines.values() if line.info is not None]
        if not there or any(line.refusal_code not in FAULTS_OF_THE_JOB for line in there):
            return None
        return "\n".join(dict.fromkeys(line.detail for line in there))

    def why_nobody(self) -> str:
        return "no node is left: " + "; ".join(
            f"{name} {line.state} ({line.detail})" for name, line in self.lines.items()
        )
