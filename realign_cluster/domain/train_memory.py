"""Memory arithmetic of a model that trains: what one rank needs, term by term, and the sum as text.

A step has two moments at which most is held: in the backward pass, with activations and logits, and in the update, when
old and new weights and moments exist side by side. What is held all the time is added to the larger of the two. When
the backward pass holds most depends on how the model is spread (`domain.train_phases`). Checked against MLX's measured
peak (tests/training: test_train_memory.py, test_rank_memory.py). Everything is in bytes. Must not know nodes.
"""

from __future__ import annotations

from dataclasses import dataclass

from realign_cluster.domain.memory import PROCESS_BYTES, WEIGHTS_SLACK, ModelFacts, gib
from realign_cluster.domain.train_phases import Held, Phase, Terms, gathering, phases_of, size_of
from realign_cluster.domain.train_shapes import (
    FLOAT32_BYTES,
    BlockKeeps,
    Trained,
    adapted_linears,
    block_keeps,
    compute_bytes,
    end_parameters,
    largest_array,
    trained,
    weight_bits,
)
from realign_cluster.domain.training import ParallelMode, TrainSettings

MOMENTS = {"adamw": 2, "adam": 2, "sgd": 0}
# Arrays of its size that the update of the largest array makes on the way. The gradient of a linear layer is
# transposed, so that what is made of it cannot take the place of what is made of the moments. One that was joined over
# ranks is not, and half as many are made, but if embedding and head are two, both are on the way at once.
UPDATE_COPIES = {"adamw": 3, "adam": 3, "sgd": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatchShape:
    """What goes through the model at once. `tokens` with padding; `targets` are predicted; `row_tokens` is the length
    of its sequences. `several`: a step has more than one, so their gradients are added up; in a pipeline, more than
    are in flight.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainNeed:
    """`masters`: float32 copies of 16-bit weights that are trained. `kept_state`: weights and moments of the step
    before while they are written. `held` is what the backward pass holds, `phases` when most of it is there; `update`:
    new weights beside the old, clipped gradients, and what is made on the way. New moments take the place of the old.
    """

    weights: int
    masters: int
    moments: int
    kept_state: int
    update: int
    process: int
    held: Held
    phases: tuple[Phase, ...]

    @property
    def steady(self) -> int:
        return self.weights + self.masters + self.moments + self.kept_state + self.process

    @property
    def backward(self) -> int:
        return max(phase.size for phase in self.phases)

    @property
    def updating(self) -> int:
        return size_of(self._update())

    @property
    def total(self) -> int:
        called = self.weights + self.process + self.held.called if self.held.called else 0
        return max(self.steady + max(self.backward, self.updating), called)

    def text(self) -> str:
        """The sum, term by term; what is nothing is left out."""
        steady: Terms = (
            ("weights", self.weights),
            ("float32 masters", self.masters),
            ("moments", self.moments),
            ("state being written", self.kept_state),
            ("process", self.process),
        )
        update = Phase(name="update", terms=self._update())
        if self.total > self.steady + max(self.backward, update.size):  # before there are moments
            steady = (steady[0], steady[-1])
            most = Phase(name="first call", terms=(("both ends and a block, gathered", self.held.called),))
        else:
            most = max((update, *self.phases), key=lambda phase: phase.size)
        return f"{_text(steady)} + {most.name}: {_text(most.terms)} = {gib(self.total)}"

    def _update(self) -> Terms:
        return (("gradients", self.held.gradients), ("new weights and what they are made of", self.update))


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
    block_gradients, end_gradients = here.gathered_gradients()
    held = Held(
        tokens=batch.tokens,
        kept=batch.tokens * here.kept(batch, backend),
        block=batch.tokens * here.block(batch, backend),
        copies=batch.tokens * here.copies(batch, backend),
        adapted=here.adapted(),
        blocks=here.backward_blocks,
        hidden=batch.tokens * here.hidden * here.activation_bytes,
        logits=here.logits(batch),
        logits_cast=here.activation_bytes < FLOAT32_BYTES,
        logits_capped=model.architecture is not None and model.architecture.capped,
        gradients=(own + here.shared_parameters()) * FLOAT32_BYTES,
        several=batch.several,
        in_flight=part.in_flight,
        first=here.first,
        whole_block=here.gathered_block(),
        whole_end=here.gathered_end(),
        block_gradients=block_gradients,
        end_gradients=end_gradients,
        largest=here.largest_whole(),
        held_bytes=max(1, round(weight_bits(model, settings) / 8)),
        called=here.called(),
    )
    return TrainNeed(
        weights=here.weights(),
        masters=masters,
        moments=moments,
        kept_state=state,
        update=own * FLOAT32_BYTES * (1 if settings.optimizer.clip_norm is None else 2)
        + (own * found.bytes_each if masters else 0)
        + here.updated_at_once() * UPDATE_COPIES[settings.optimizer.name],
        process=PROCESS_BYTES,
        held=held,
        phases=phases_of(part.parallel, held, settings.fine_tune, checkpointed=settings.grad_checkpoint),
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
        """Whose weights and moments the optimizer has here."""
        blocks = max(0, self._last - max(self._first, self._trained.lowest))
        in_blocks = blocks * self._trained.per_block
        known = self._model.architecture is not None
        ends = min(self._trained.ends, self._end_parameters()) if known else self._trained.ends
        if self._part.parallel == "sharded":
            return -(-(in_blocks + ends) // self._part.ranks)
        return -(-in_blocks // self._cut_by) + ends - self.shared_parameters()

    def shared_parameters(self) -> int:
        """Of tied embeddings at the last stage: it has a gradient, which goes to the first one, whose they are."""
        shape = self._model.architecture
        alone = self._part.blocks is None or self._first == 0 or self._last < self._trained.blocks
        if shape is None or alone or not shape.tied or not self._trained.ends:
            return 0
        return shape.vocabulary * shape.hidden

    @property
    def activation_bytes(self) -> int:
        return compute_bytes(self._model, self._settings)

    @property
    def hidden(self) -> int:
        """Elements of a token's hidden states."""
        return self._model.architecture.hidden if self._model.architecture is not None else 0

    @property
    def first(self) -> bool:
        return self._first == 0

    @property
    def backward_blocks(self) -> int:
        return max(0, self._last - max(self._first, self._trained.lowest))

    def _keeps(self, batch: MicroBatchShape, backend: str) -> BlockKeeps | None:
        shape = self._model.architecture
        if shape is None:
            return None
        return block_keeps(
            shape, self._settings, row_tokens=batch.row_tokens, size=self.activation_bytes, backend=backend
        )

    def block(self, batch: MicroBatchShape, backend: str) -> int:
        """Bytes per token that a block keeps if nothing of it is computed again."""
        keeps = self._keeps(batch, backend)
        return 0 if keeps is None else keeps.on(self._cut_by)

    def copies(self, batch: MicroBatchShape, backend: str) -> int:
        """Bytes per token of them that are copies, where a block is not cut."""
        keeps = self._keeps(batch, backend)
        return 0 if keeps is None else keeps.copies

    def adapted(self) -> int:
        """Bytes of a block's weights, as DoRA makes them in float32 to see how long their rows are."""
        shape = self._model.architecture
        if shape is None or self._settings.fine_tune != "dora":
            return 0
        weights = sum(linear.inputs * linear.outputs for linear in adapted_linears(shape, self._settings))
        return weights // self._cut_by * FLOAT32_BYTES

    def kept(self, batch: MicroBatchShape, backend: str) -> int:
        """Bytes per token that are kept until the backward pass."""
        if self._part.parallel == "sharded":  # every block's input, also of those below what is trained
            return self._trained.blocks * self.hidden * self.activation_bytes
        if self._settings.grad_checkpoint:
            return self.backward_blocks * self.hidden * self.activation_bytes
        return self.backward_blocks * self.block(batch, backend)

    def logits(self, batch: MicroBatchShape) -> int:
        """One float32 copy."""
        shape = self._model.architecture
        if shape is None or self._last < self._trained.blocks:
            return 0
        return batch.targets * shape.vocabulary * FLOAT32_BYTES

    def updated_at_once(self) -> int:
        """Float32 of what UPDATE_COPIES counts: the largest array that is trained here. Adapters are small."""
        shape = self._model.architecture
        if self.shared_parameters():
            return self._largest_inside()
        if self._part.parallel == "tensor" and shape is not None and shape.tied:  # joined, and one alone
            return max(self.largest_whole() // 2, self._largest_inside())
        return self.largest_whole() // (self._part.ranks if self._part.parallel == "sharded" else 1)

    def largest_whole(self) -> int:
        """Bytes of its float32 gradient; nothing where only adapters are trained."""
        shape = self._model.architecture
        if shape is None or self._settings.fine_tune != "full":
            return 0
        ends = shape.vocabulary * shape.hidden if self._end_parameters() else 0
        return max(ends * FLOAT32_BYTES, self._largest_inside())

    def _largest_inside(self) -> int:
        """The same of the blocks alone."""
        shape = self._model.architecture
        if shape is None or self._last <= self._first or self._settings.fine_tune != "full":
            return 0
        return largest_array(shape) // self._cut_by * FLOAT32_BYTES

    # --- fully sharded: what is whole for a while ---

    @property
    def _end(self) -> float:
        """Parameters of the larger of embedding and head."""
        return self._ends / (1 if self._model.architecture is None or self._model.architecture.tied else 2)

    def gathered_block(self) -> int:
        sharded = self._part.parallel == "sharded"
        return self._bytes((self._model.parameters.total - self._ends) / self._trained.blocks) if sharded else 0

    def gathered_end(self) -> int:
        return self._bytes(self._end) if self._part.parallel == "sharded" else 0

    def gathered_gradients(self) -> tuple[int, int]:
        """(of a block, of the larger end), float32."""
        if self._part.parallel != "sharded":
            return 0, 0
        return self._trained.per_block * FLOAT32_BYTES, min(self._trained.ends, round(self._end)) * FLOAT32_BYTES

    def called(self) -> int:
        """A rank calls the whole model once when it has loaded: both ends stay, blocks come one by one."""
        if self._part.parallel != "sharded":
            return 0
        block, ends = self.gathered_block(), self._bytes(self._ends)
        return ends + max(gathering(ends), block + gathering(block))
