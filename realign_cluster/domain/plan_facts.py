"""What a plan is made from: facts of nodes and work, and a node's speed with its source. Decides nothing."""

from __future__ import annotations

from dataclasses import dataclass

from realign_cluster.domain.group import Sharding
from realign_cluster.domain.plan import SpeedSource
from realign_cluster.domain.prior import DeviceFacts, PriorSpeed
from realign_cluster.domain.report import Calibration

DEFAULT_ROW_TOKENS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """A node that serves and is enrolled."""

    name: str
    node_id: str = ""
    device: DeviceFacts
    memory_bytes: int
    working_set_bytes: int = 0  # 0: not reported
    available_bytes: int | None = None
    memory_limit_bytes: int | None = None  # the hostfile's
    rdma: bool = False  # the hostfile names RDMA devices for it
    thermal: str = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkFacts:
    """What there is to score. `cost` is in token equivalents (domain.batching.row_cost)."""

    kinds: tuple[str, ...]
    rows: int
    cost: float
    longest_row_tokens: int = 2048
    median_row_tokens: int = DEFAULT_ROW_TOKENS
    batch_tokens: int | None = None  # asked for by the user
    backend: str = "any"  # the hostfile's: how nodes could be joined to hold one model
    sharding: Sharding = "auto"
    whole_model_only: str = ""  # why no group of nodes can do it; empty: one can
    beside_bytes: int = 0  # of weights that have to be on a node besides the model's
    estimated_from: str = ""  # "the first 512 rows", empty when every row was read

    def rows_at(self, cost_per_second: float) -> float:
        """Rows per second at this speed, at the average cost of a row."""
        return cost_per_second * self.rows / self.cost if self.cost > 0 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StaleCalibration:
    """A measurement that is kept but not trusted: a better guess than the prior, and printed as such."""

    calibration: Calibration
    reason: str  # "it is 41 days old", "mlx was 0.31.0"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSpeed:
    cost_per_second: float
    source: SpeedSource
    text: str
    prior: PriorSpeed
