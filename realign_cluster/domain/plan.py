"""A plan as it is shown, written to plan.json and read again. Holds numbers and reasons; decides nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from realign_cluster.domain.errors import RealignError, UsageError

PLAN_VERSION = 1
Approach = Literal["separate", "sharded", "refused"]
SpeedSource = Literal["measured", "stale", "prior"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePlan:
    """What one node will do. Speeds are in cost (token equivalents) and rows per second."""

    name: str
    node_id: str
    chip: str
    backend: str
    share: float  # of the cost, 0 to 1
    cost_per_second: float
    rows_per_second: float
    source: SpeedSource
    source_text: str
    measured_cost_per_second: float | None
    prior_cost_per_second: float
    prior_text: str
    batch_tokens: int
    batch_source: str
    best_batch: dict[str, int] = field(default_factory=dict)  # length in tokens -> rows, as measured
    memory: str = ""
    memory_needed_bytes: int = 0
    memory_limit_bytes: int = 0
    thermal: str = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupMember:
    """`blocks` is a half-open range of the model's (pipeline); None: a part of each."""

    name: str
    node_id: str
    blocks: tuple[int, int] | None
    memory: str
    memory_needed_bytes: int
    memory_limit_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupPlan:
    """Nodes that hold one copy of the model together, in rank order. The last leads: it is the plan's one node."""

    parallel: Literal["pipeline", "tensor"]
    members: tuple[GroupMember, ...]
    batch_tokens: int  # the largest batch that fits on every member

    @property
    def leader(self) -> str:
        return self.members[-1].name

    @property
    def layers(self) -> tuple[tuple[int, int], ...]:
        return tuple(member.blocks for member in self.members if member.blocks is not None)

    def text(self) -> str:
        """ "pipeline over alpha (blocks 0 to 11) and beta (blocks 12 to 31, leads)"."""
        said = []
        for member in self.members:
            held = [f"blocks {member.blocks[0]} to {member.blocks[1] - 1}"] if member.blocks is not None else []
            details = [*held, *(["leads"] if member.name == self.leader else [])]
            said.append(f"{member.name} ({', '.join(details)})" if details else member.name)
        return f"{self.parallel} over {', '.join(said[:-1])} and {said[-1]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`refusal` and `fix` are there exactly when `approach` is "refused", a group exactly when it is "sharded"."""

    approach: Approach
    model: str
    model_hash: str
    dtype: str
    parameters: int
    weights_bytes: int
    kinds: tuple[str, ...]
    rows: int
    cost: float
    nodes: tuple[NodePlan, ...] = ()
    group: GroupPlan | None = None
    left_out: tuple[LeftOut, ...] = ()
    cost_per_second: float = 0.0
    rows_per_second: float = 0.0
    expected_seconds: float | None = None  # scoring alone, without loading the model
    fastest_alone: str = ""
    fastest_alone_seconds: float | None = None
    equal_split_seconds: float | None = None
    why: tuple[str, ...] = ()
    refusal: str = ""
    fix: str = ""
    version: int = PLAN_VERSION

    def shares(self) -> dict[str, float]:
        return {node.name: node.share for node in self.nodes}

    def to_json(self) -> dict[str, Any]:
        """Plain objects, lists, numbers: for plan.json and for --json."""
        return dataclasses.asdict(self)

    def raise_if_refused(self) -> None:
        """Raises UsageError with the arithmetic when this cannot run."""
        if self.approach == "refused":
            raise UsageError(self.refusal, self.fix)


_PLAN = TypeAdapter(Plan)


def plan_from_json(stored: Mapping[str, Any]) -> Plan:
    """Read plan.json again. RealignError when it is not one of this version."""
    if stored.get("version") != PLAN_VERSION:
        raise RealignError(
            f"plan.json has version {stored.get('version')!r}, this program reads {PLAN_VERSION}",
            "use the version of realign-cluster that wrote it",
        )
    try:
        return _PLAN.validate_python(dict(stored))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RealignError(f"plan.json is damaged at {where}: {first['msg']}", "run `realign plan` again") from None
