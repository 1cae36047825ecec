"""What is to be done about a training run, each command with its reason.

Written to the ledger with the event that led to it, and carried out only then. Knows shapes only: `domain.recovery`
decides, the coordinator obeys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from realign_cluster.domain.ids import NodeName
from realign_cluster.domain.run_memory import RunMemory
from realign_cluster.domain.world import RankSpec, StatePart

Level = Literal["info", "warning"]
Outcome = Literal["complete", "incomplete", "failed"]  # incomplete: the same command goes on from where it stopped


@dataclass(frozen=True, slots=True, kw_only=True)
class Remember:
    """To be in the ledger before anything that follows takes effect."""

    memory: RunMemory


@dataclass(frozen=True, slots=True, kw_only=True)
class Replan:
    """Ask the planner how to spread the run over these nodes; answered by Replanned."""

    nodes: tuple[NodeName, ...]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetch:
    """Let `node` pull a part from `source` (None: the run folder) and verify it.

    Answered by PartFetched or FetchFailed, whichever stream it comes over. An equal one that is under way goes on.
    """

    node: NodeName
    part: StatePart
    source: NodeName | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StartRank:
    node: NodeName
    spec: RankSpec
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Go:
    """All ranks are loaded: let them join, in rank order. May be said again; a rank that has joined ignores it."""

    generation: int
    nodes: tuple[NodeName, ...]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AskStop:
    """All ranks are to stop after the same step, with a checkpoint. May be said again."""

    generation: int
    nodes: tuple[NodeName, ...]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KillRank:
    """SIGTERM, and SIGKILL after `grace_seconds`; answered by RankExited. May be said again."""

    node: NodeName
    generation: int
    grace_seconds: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DropParts:
    node: NodeName
    parts: tuple[StatePart, ...]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """Pull a whole checkpoint into the run folder: part by part from the node named beside it. Answered by
    CheckpointStored or StoreFailed.
    """

    step: int
    parts: tuple[tuple[NodeName, StatePart], ...]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShiftShares:
    generation: int
    version: int  # from 1, within a generation
    shares: tuple[float, ...]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantine:
    """No ranks for this node any more in this sitting: it needs a reboot, or its ranks keep crashing."""

    node: NodeName
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NoteLine:
    """For the user: what goes on and why."""

    text: str
    level: Level = "info"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    state: Outcome
    reason: str


Command = (
    Remember
    | Replan
    | Fetch
    | StartRank
    | Go
    | AskStop
    | KillRank
    | DropParts
    | Store
    | ShiftShares
    | Quarantine
    | NoteLine
    | Finish
)
