"""What arrives in the engine's one queue: reports of sessions, answers of the ledger, the user's interruption."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Literal

from realign_cluster.domain import recovery_events
from realign_cluster.domain.events import UnitRef
from realign_cluster.domain.ids import NodeName
from realign_cluster.rpc.pb import common_pb2 as common
from realign_cluster.rpc.pb import node_pb2 as pb


@dataclass(frozen=True, slots=True, kw_only=True)
class Connected:
    info: common.NodeInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Disconnected:
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """The daemon was told to stop and said goodbye: it may come back, what it holds will not."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Barred:
    """The node will not serve this run however often it is asked; `message` ends with the fix."""

    kind: Literal["held", "version", "identity", "epoch", "duplicate", "model"]
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelProgress:
    sent: int
    total: int


Report = pb.NodeMessage | Connected | Disconnected | Left | Barred | ModelProgress


@dataclass(frozen=True, slots=True, kw_only=True)
class Incoming:
    node: NodeName
    report: Report


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """Answer of the ledger to LoadUnits, on its way back into the loop."""

    units: tuple[UnitRef, ...]
    exhausted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Interrupted:
    """The user asked to stop; the second time, at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Happened:
    """What a task of the training engine came to, on its way back into the loop."""

    event: recovery_events.Event


Inbox = asyncio.Queue[Incoming | Loaded | Interrupted | Happened]
