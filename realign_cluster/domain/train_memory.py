"""Memory arithmetic of a model that trains: what one rank needs, term by term, and the sum as text.

A step has two moments at which most is held: in the backward pass, with activations and logits, and in the update, when
old and new weights and moments exist side by side. What is held all the time is added to the larger of the two. Checked
against MLX's measured peak (tests/training/test_train_memory.py). Everything is in bytes. Must not know nodes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from realign_cluster.domain.memory import PROCESS_BYTES, WEIGHTS_SLACK, ModelFacts, gib
from realign_cluster.domain.train_shapes import (
    FLOAT32_BYTES,
    Trained,
    block_keeps,
    compute_bytes,
    end_parameters,
    trained,
    weight_bits,
)
from realign_cluster.domain.training import ParallelMode, TrainSettings

MOMENTS = {"adamw": 2, "adam": 2, "sgd": 0}
# Float32: logits, their softmax, the gradients of what is made of them. Cutting them into slices changes little, since
# MLX begins the next ones before it is through with the first.
LOGIT_COPIES = 4
RECOMPUTED_BLOCKS = 3.2  # blocks whose activations are there while checkpointed ones are computed again
SLICED_LOGIT_COPIES = 4  # of all slices together: MLX begins the next ones before it is through with the first


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatchShape:
    """What goes through the model at once. `tokens` with padding; `targets` are predicted; `row_tokens` is the length
    of its sequences. `several`: a step has more than one, so their gradients are added up.
    """

    tokens: int
    row_tokens: int
    targets: int
    several: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPart:
    """What of the model one of `ranks` holds. `blocks` is a half-open range (pipeline; None: all of them), `in_flight`
    how many micro-batches' activations it holds at once.
    """

    parallel: ParallelMode = "single"
    ranks: int = 1
    blocks: tuple[int, int] | None = None
    in_flight: int = 1


WHOLE = RankPart()

Terms = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainNeed:
    """`masters`: float32 copies of 16-bit weights that are trained. `kept_state`: weights and moments of the step
    before while they are written. `sums`: gradients of the micro-batches before. `activations` are kept until the
    backward pass, `block` is used beside them, `recomputed` by checkpointed blocks while they are computed again.
    `gathered`: a block's whole weights where they are fully sharded. `update`: new weights and moments beside the old.
    """

    weights: int
    masters: int
    moments: int
    kept_state: int
    gradients: int
    sums: int
    activations: int
    block: int
    recomputed: int
    logits: int
    gathered: int
    update: int
    process: int
    tokens: int
    checkpointed: bool

    @property
    def steady(self) -> int:
        return self.weights + self.masters + self.moments + self.kept_state + self.process

    @property
    def backward(self) -> int:
        return max(_sum(self._head()), _sum(self._again()))

    @property
    def updating(self) -> int:
        return _sum(self._update())

    @property
    def total(self) -> int:
        return self.steady + max(self.backward, self.updating)

    def text(self) -> str:
        """The sum, term by term; what is nothing is left out."""
        moments = {"update": self._update(), "backward pass": max(self._head(), self._again(), key=_sum)}
        moment, terms = max(moments.items(), key=lambda item: _sum(item[1]))
        steady = (
            ("weights", self.weights),
            ("float32 masters", self.masters),
            ("moments", self.moments),
            ("state being written", self.kept_state),
            ("process", self.process),
        )
        return f"{_text(steady)} + {moment}: {_text(terms)} = {gib(self.total)}"

    def _head(self) -> Terms:
        """As the backward pass begins. With checkpointing its logits are gone by the time that gradients come."""
        both = (*self._kept(), ("one block more", self.block), ("logits", self.logits))
        return both if self.checkpointed else (*both, ("gradients", self.gradients))

    def _again(self) -> Terms:
        """As checkpointed blocks are computed again."""
        return (*self._kept(), ("blocks computed again", self.recomputed), ("gradients", self.gradients))

    def _kept(self) -> Terms:
        return (
            (f"activations of {self.tokens} tokens", self.activations),
            ("summed gradients", self.sums),
            ("gathered block", self.gathered),
        )

    def _update(self) -> Terms:
        return (("gradients", self.gradients), ("new weights and moments", self.update))


def _sum(terms: Terms) -> int:
    return sum(size for _, size in terms)


def _text(terms: Terms) -> str:
    return " + ".join(f"{name} {gib(size)}" for name, size in terms if size)


def train_need(
    model: ModelFacts,
    settings: TrainSettings,
    batch: MicroBatchShape,
    part: RankPart = WHOLE,
    *,
    backend: str = "metal",
) -> TrainNeed:
    """Of one rank. A method with a reference needs no second model: its log-probabilities are computed before the
    first step, and without gradients that takes less than a step.
    """
    found = trained(model, settings)
    here = _Here(model, settings, found, part)
    own = here.trained_parameters()
    masters = 0 if found.bytes_each == FLOAT32_BYTES else own * FLOAT32_BYTES
    moments = own * FLOAT32_BYTES * MOMENTS[settings.optimizer.name]
    state = own * FLOAT32_BYTES + moments
    kept, block = here.activations(batch, backend)
    again = settings.grad_checkpoint or part.parallel == "sharded"
    return TrainNeed(
        weights=here.weights(),
        masters=masters,
        moments=moments,
        kept_state=state,
        gradients=own * FLOAT32_BYTES,
        sums=own * FLOAT32_BYTES if batch.several else 0,
        activations=batch.tokens * kept,
        block=batch.tokens * block,
        recomputed=round(batch.tokens * block * RECOMPUTED_BLOCKS) if again else 0,
        logits=here.logits(batch),
        gathered=here.gathered(),
        update=max(state, own * FLOAT32_BYTES * 2) + (own * found.bytes_each if masters else 0),
        process=PROCESS_BYTES,
        tokens=batch.tokens,
        checkpointed=again,
    )


class _Here:
    """One rank's part of the model."""

    def __init__(self, model: ModelFacts, settings: TrainSettings, found: Trained, part: RankPart) -> None:
        self._model = model
        self._settings = settings
        self._trained = found
        self._part = part
        self._bits = weight_bits(model, settings)
        self._first, self._last = part.blocks or (0, found.blocks)
        self._ends = end_parameters(model)

    @property
    def _cut_by(self) -> int:
        return self._part.ranks if self._part.parallel == "tensor" else 1

    def _bytes(self, parameters: float) -> int:
        """Of weights as they are held; what the files say is believed over what the config would give."""
        counted = self._model.parameters.total * self._bits / 8
        loaded = self._model.weights_bytes if self._settings.dtype == "auto" and counted else counted
        return round(parameters * self._bits / 8 * (loaded / counted if counted else 1.0) * (1 + WEIGHTS_SLACK))

    def _end_parameters(self) -> int:
        """Of embedding and head, as far as they are here; tied ones are at both ends of a pipeline."""
        shape = self._model.architecture
        if shape is None or self._part.blocks is None:
            return self._ends
        matrix = shape.vocabulary * shape.hidden
        return matrix * ((self._first == 0) + (self._last == self._trained.blocks))

    def weights(self) -> int:
        blocks = self._model.parameters.total - self._ends
        here = blocks * (self._last - self._first) / self._trained.blocks
        if self._part.parallel == "sharded":
            return self._bytes((blocks + self._ends) / self._part.ranks)
        return self._bytes(here / self._cut_by + self._end_parameters())

    def trained_parameters(self) -> int:
        blocks = max(0, self._last - max(self._first, self._trained.lowest))
        in_blocks = blocks * self._trained.per_block
        known = self._model.architecture is not None
        ends = min(self._trained.ends, self._end_parameters()) if known else self._trained.ends
        if self._part.parallel == "sharded":
            return -(-(in_blocks + ends) // self._part.ranks)
        return -(-in_blocks // self._cut_by) + ends

    def activations(self, batch: MicroBatchShape, backend: str) -> tuple[int, int]:
        """Bytes per token: kept until the backward pass, and used by a block beside that."""
        shape = self._model.architecture
        if shape is None:
            return 0, 0
        size = compute_bytes(self._model, self._settings)
        keeps = block_keeps(shape, self._settings, row_tokens=batch.row_tokens, size=size, backend=backend)
        block = keeps.on(self._cut_by)
        blocks = max(0, self._last - max(self._first, self._trained.lowest))
        if self._settings.grad_checkpoint or self._part.parallel == "sharded":
            return blocks * shape.hidden * size * self._part.in_flight, block
        return blocks * block * self._part.in_flight, block

    def logits(self, batch: MicroBatchShape) -> int:
        shape = self._model.architecture
        if shape is None or self._last < self._trained.blocks:
            return 0
        return batch.targets * shape.vocabulary * FLOAT32_BYTES * LOGIT_COPIES

    def gathered(self) -> int:
        """Whole weights and gradients of the largest of block, embedding and head."""
        if self._part.parallel != "sharded":
            return 0
        blocks = self._trained.blocks
        block = (self._model.parameters.total - self._ends) / blocks
        end = self._ends / (1 if self._model.architecture is None or self._model.architecture.tied else 2)
        weights = self._bytes(max(block, end))
        gradients = max(self._trained.per_block, min(self._trained.ends, math.ceil(end))) * FLOAT32_BYTES
        return weights + gradients
