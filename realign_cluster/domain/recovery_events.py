"""What happens to a training run: facts with the coordinator's monotonic time `at`, in seconds.

Written to the ledger in order. Knows shapes only: `domain.recovery` answers with `domain.recovery_commands`.

What a daemon promises: a stream begins with NodeReady, and what it reports comes in order. It kills its rank when it
has heard nothing for its lease. KillRank is always answered by RankExited, also where there is no such rank, and from
then on a rank of that or an older generation is not started (StartFailed); nor does an order start one that came over
a stream older than the last NodeReady. Parts are dropped by DropParts only, and only those that are equal to what is
named there. A rank that starts from the last step keeps its checkpoint and ends.
"""

from __future__ import annotations

from dataclasses import dataclass

from realign_cluster.domain.ids import Epoch, NodeName
from realign_cluster.domain.run_memory import Options, RunMemory
from realign_cluster.domain.section_limits import SectionName
from realign_cluster.domain.world import StatePart, WorldPlan

# Codes of RankFailed that mean something here; any other one is a failure of the node that said it.
STATE_CODE = "state"  # the state it was to start from cannot be used
HANG_CODE = "hang"  # its own watchdog: it is not to blame where it waited for others
PEER_CODES = frozenset({"group", "peer"})  # another rank went: this one is not to blame


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A sitting begins. `checkpoints` are the parts of whole checkpoints in the run folder whose manifests are good."""

    at: float
    epoch: Epoch
    options: Options
    memory: RunMemory  # RunMemory() in the first sitting
    checkpoints: tuple[StatePart, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReady:
    """Its session is up, model and data are there; also after a reconnect. `parts` is all that it holds of this run.

    `generation` is that of the rank that lives there, None if none does. `boot` changes when the machine restarts.
    """

    at: float
    node: NodeName
    parts: tuple[StatePart, ...] = ()
    generation: int | None = None
    boot: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLost:
    """It was silent for its lease, and is sent nothing more. `clean`: it said goodbye after its rank had ended.
    `barred`: it will not take part in this sitting, whoever waits for it; also said of a node that was never ready.
    """

    at: float
    node: NodeName
    reason: str
    clean: bool = False
    barred: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Replanned:
    """Answer to Replan for the same `nodes`: a plan, or why there is none."""

    at: float
    nodes: tuple[NodeName, ...]
    plan: WorldPlan | None
    refusal: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartFailed:
    """There is no such rank and there will be none."""

    at: float
    node: NodeName
    generation: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RankLoaded:
    """Model, data and state are in memory. `config` must be equal on all ranks."""

    at: float
    node: NodeName
    generation: int
    config: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankJoined:
    at: float
    node: NodeName
    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSection:
    """It has begun a section, or gets further in it; it is hung if nothing of it comes for `patience_seconds`."""

    at: float
    node: NodeName
    generation: int
    section: SectionName
    step: int
    patience_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDone:
    """`step` steps are done, the last in `seconds`."""

    at: float
    node: NodeName
    generation: int
    step: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PartKept:
    """A part is whole in this node's state folder. It replaces one of the same name."""

    at: float
    node: NodeName
    part: StatePart


@dataclass(frozen=True, slots=True, kw_only=True)
class PartFetched:
    """Verified, in this node's state folder."""

    at: float
    node: NodeName
    part: StatePart


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchFailed:
    """`corrupt`: what `source` (None: the run folder) has is missing or damaged; else the way or `node` is to blame."""

    at: float
    node: NodeName
    part: StatePart
    source: NodeName | None
    reason: str
    corrupt: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointStored:
    """The run folder has it whole. `parts` as the nodes had them."""

    at: float
    step: int
    parts: tuple[StatePart, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreFailed:
    """`corrupt`: what turned out to be missing or damaged on its node; empty if it was the way or the disk."""

    at: float
    step: int
    reason: str
    corrupt: tuple[tuple[NodeName, StatePart], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SharesMeasured:
    """Step times call for other shares, in rank order."""

    at: float
    generation: int
    shares: tuple[float, ...]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LossMeasured:
    """`loss` on the validation rows, of the state after `step`. Its checkpoint follows if it is the best so far."""

    at: float
    generation: int
    step: int
    loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class KlMeasured:
    """`kl` in nats per completion token, of the state after `step`."""

    at: float
    generation: int
    step: int
    kl: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RankEnded:
    """It is through and about to exit. `digest` is of the trainable weights that it holds."""

    at: float
    node: NodeName
    generation: int
    step: int
    complete: bool
    reason: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RankFailed:
    """It says why it is about to exit. `fatal`: no other try would mend it."""

    at: float
    node: NodeName
    generation: int
    code: str
    message: str
    fatal: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RankExited:
    """The process is gone. `asked`: the daemon had signalled it before. `wedged`: it outlived SIGKILL, or its memory
    did.
    """

    at: float
    node: NodeName
    generation: int
    reason: str
    asked: bool
    wedged: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StopAsked:
    """The user interrupted. The second time ranks are killed."""

    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Stalled:
    """The coordinator itself was away for `gap` seconds: no deadline counts them."""

    at: float
    gap: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """Time passes; at least every half second. Recorded only when it leads to a command."""

    at: float


Event = (
    Opened
    | NodeReady
    | NodeLost
    | Replanned
    | StartFailed
    | RankLoaded
    | RankJoined
    | RankSection
    | StepDone
    | PartKept
    | PartFetched
    | FetchFailed
    | CheckpointStored
    | StoreFailed
    | SharesMeasured
    | LossMeasured
    | KlMeasured
    | RankEnded
    | RankFailed
    | RankExited
    | StopAsked
    | Stalled
    | Tick
)
