"""A training plan as it is shown, written to plan.json and read again. Holds numbers and reasons; decides nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from realign_cluster.domain.errors import RealignError, UsageError
from realign_cluster.domain.plan import LeftOut, SpeedSource
from realign_cluster.domain.training import Backend, ParallelMode
from realign_cluster.domain.world import WorldPlan

TRAIN_PLAN_VERSION = 1
TrainApproach = ParallelMode | Literal["refused"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainNodePlan:
    """What one rank will do. `share` is its part of the rows, of the model where that is in parts. Speeds are in token
    equivalents of a forward pass per second.
    """

    name: str
    node_id: str
    chip: str
    device: str  # "metal", "cpu", "cuda"
    share: float
    blocks: tuple[int, int] | None  # pipeline: half-open range
    tokens_per_second: float  # of training, alone and with the whole model
    cost_per_second: float
    source: SpeedSource
    source_text: str
    measured_cost_per_second: float | None
    prior_cost_per_second: float
    prior_text: str
    compute_seconds: float  # of a step
    memory: str
    memory_needed_bytes: int
    memory_limit_bytes: int
    thermal: str = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """Another way: what a step would take, or why it is out."""

    parallel: ParallelMode
    nodes: tuple[str, ...]
    step_seconds: float | None
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainPlan:
    """`refusal` and `fix` are empty exactly when `approach` is not "refused"."""

    approach: TrainApproach
    backend: Backend
    model: str
    model_hash: str
    dtype: str
    parameters: int
    weights_bytes: int
    method: str
    fine_tune: str
    trained_parameters: int
    steps: int
    global_batch: int
    rows: int
    step_tokens: float
    nodes: tuple[TrainNodePlan, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    step_seconds: float | None = None
    compute_seconds: float = 0.0  # of a step: the slowest rank's, a pipeline's waiting included
    communication_seconds: float = 0.0
    communication_text: str = ""
    update_seconds: float = 0.0
    reference_seconds: float = 0.0  # once, before the first step
    expected_seconds: float | None = None  # all steps and the reference, without loading, evaluation and checkpoints
    alternatives: tuple[Alternative, ...] = ()
    why: tuple[str, ...] = ()
    cautions: tuple[str, ...] = ()  # what is worth changing before it runs
    refusal: str = ""
    fix: str = ""
    version: int = TRAIN_PLAN_VERSION

    @property
    def tokens_per_second(self) -> float:
        return self.step_tokens / self.step_seconds if self.step_seconds else 0.0

    @property
    def cost_per_token(self) -> float:
        """What a token of a step is worth, in token equivalents of a forward pass: the same on every node. 0 of a plan
        without nodes.
        """
        found = ((node.cost_per_second, node.tokens_per_second) for node in self.nodes)
        return next((cost / tokens for cost, tokens in found if tokens), 0.0)

    def shares(self) -> dict[str, float]:
        return {node.name: node.share for node in self.nodes}

    def world(self) -> WorldPlan:
        """What ranks are started with. A refused plan has none."""
        assert self.approach != "refused", self.refusal
        return WorldPlan(
            parallel=self.approach,
            backend=self.backend,
            nodes=tuple(node.name for node in self.nodes),
            shares=tuple(node.share for node in self.nodes),
            layers=tuple(node.blocks for node in self.nodes if node.blocks is not None),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain objects, lists, numbers: for plan.json and for --json."""
        return dataclasses.asdict(self)

    def raise_if_refused(self) -> None:
        """Raises UsageError with the arithmetic when this cannot run."""
        if self.approach == "refused":
            raise UsageError(self.refusal, self.fix)


_PLAN = TypeAdapter(TrainPlan)


def train_plan_from_json(stored: Mapping[str, Any]) -> TrainPlan:
    """Read plan.json again. RealignError when it is not a training plan of this version."""
    if stored.get("version") != TRAIN_PLAN_VERSION:
        raise RealignError(
            f"plan.json has version {stored.get('version')!r}, this program reads {TRAIN_PLAN_VERSION}",
            "use the version of realign-cluster that wrote it",
        )
    try:
        return _PLAN.validate_python(dict(stored))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RealignError(
            f"plan.json is damaged at {where}: {first['msg']}", "run `realign plan train` again"
        ) from None
