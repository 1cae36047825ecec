"""What a rank says of itself: one JSON object a report, told apart by "op". Written by `training`, read by the
coordinator.

Steps count what is done: `step` 3 means three optimizer steps are behind the state that is spoken of.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field, TypeAdapter

from realign_cluster.domain.report import Loose
from realign_cluster.domain.section_limits import SectionName
from realign_cluster.domain.world import StatePart

BENCHMARK: Final = "benchmark/"  # and its name: among the metrics of an evaluation, in metrics.jsonl and in trackers


class Section(Loose):
    """The rank has entered a section, or gets further in it. It is hung if nothing is heard of it for longer than
    `patience_seconds`.
    """

    op: Literal["section"] = "section"
    section: SectionName
    step: int
    patience_seconds: float


class Loaded(Loose):
    """Model, data and state are in memory; the rank waits for Go. `config` is what must be equal on all ranks."""

    op: Literal["loaded"] = "loaded"
    port: int  # free on this node a moment ago; the ring will listen there
    config: str
    versions: dict[str, str]
    start_digest: str = ""  # of the state it starts from; "" for a fresh start
    rows: int
    valid_rows: int
    truncated_rows: int = 0  # of the training rows
    empty_rows: int = 0  # of those, nothing was left to learn
    parameters: int
    seconds: float
    peak_bytes: int


class Joined(Loose):
    """The group is there, and this rank's part of the model. `trainable`: numbers that are trained in what it holds,
    each counted as if it were whole.
    """

    op: Literal["joined"] = "joined"
    seconds: float
    trainable: int


class StepDone(Loose):
    """`tokens`, `rows`, `loss` and `metrics` are global; `own_*` are this rank's."""

    op: Literal["step"] = "step"
    step: int
    loss: float
    metrics: dict[str, float] = Field(default_factory=dict)
    tokens: int
    rows: int
    own_tokens: int  # through the model, padding excluded
    own_padded: int
    seconds: float  # the whole step
    compute_seconds: float  # own forward and backward, without waiting for others
    reduce_seconds: float
    gradient_norm: float
    learning_rate: float
    shares_version: int = 0


class Kept(Loose):
    """A part is whole and verified on this node's disk or in its page cache. `seconds` it took beside the training,
    `cpu_seconds` of them on a processor.
    """

    op: Literal["kept"] = "kept"
    part: StatePart
    seconds: float
    blocked_seconds: float  # that the step had to wait
    cpu_seconds: float | None = None  # None: written before this was measured


class NotKept(Loose):
    """A snapshot or checkpoint failed (disk full ...); training goes on."""

    op: Literal["not_kept"] = "not_kept"
    kind: str
    step: int
    reason: str


class Evaluated(Loose):
    op: Literal["evaluated"] = "evaluated"
    step: int
    metrics: dict[str, float]  # of a benchmark by BENCHMARK and its name
    seconds: float


class Diverged(Loose):
    """KL from the reference, nats per completion token."""

    op: Literal["divergence"] = "divergence"
    step: int
    kl: float
    tokens: int
    seconds: float


class ReferenceRows(Loose):
    """Reference log-probabilities of rows by index: (row, sum of chosen, sum of rejected)."""

    op: Literal["reference"] = "reference"
    rows: tuple[tuple[int, float, float], ...]
    done: int
    total: int


class Ended(Loose):
    """The rank is through: all steps (`complete`), or as it was asked to. `digest` is of the trainable weights."""

    op: Literal["ended"] = "ended"
    step: int
    complete: bool
    reason: str
    digest: str
    peak_bytes: int


class Failed(Loose):
    """Nothing that another try would mend (`fatal`), or what made this generation fail."""

    op: Literal["failed"] = "failed"
    code: str
    message: str
    step: int
    fatal: bool = True
    details: dict[str, Any] = Field(default_factory=dict)


RankReport = Annotated[
    Section | Loaded | Joined | StepDone | Kept | NotKept | Evaluated | Diverged | ReferenceRows | Ended | Failed,
    Field(discriminator="op"),
]
RANK_REPORT: TypeAdapter[RankReport] = TypeAdapter(RankReport)
