"""When the backward pass of a rank holds most, for each way to spread a model: what is there at the same time.

Only sizes come in, in bytes; factors say how much of them MLX has allocated at once. They were measured on the CPU
backend, which runs furthest ahead of what is computed (about a hundred operations), at the upper end of what was seen
(tests/training/test_rank_memory.py). Must not know models, methods or settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from realign_cluster.domain.training import FineTune, ParallelMode

Terms = tuple[tuple[str, int], ...]

BUCKET_BYTES = 16 << 20  # of whole parameters that share a collective (training.parallel.spread)
# Float32: logits, their softmax, the gradient of those that are picked; around the cast of 16-bit ones also three of
# half the size. Cutting them into slices changes little, since MLX begins the next ones before it is through with the
# first.
LOGIT_COPIES, LOGIT_COPIES_CAST = 3.0, 4.5
# The last stage of a pipeline evaluates its forward pass apart, which leaves one copy, of 16-bit ones also what they
# are cast from and to; the rest comes in the backward pass.
STAGE_LOGIT_COPIES, STAGE_LOGIT_COPIES_CAST, LOGIT_COPIES_BACKWARD = 1.0, 2.4, 1.5
# Logits that are capped (gemma 2): their tanh is kept, and its slope is made of another one.
CAPPED_LOGIT_COPIES, STAGE_CAPPED_LOGIT_COPIES = 2, 1
RECOMPUTED_BLOCKS = 3.2  # blocks whose activations are there while checkpointed ones are computed again
# The same where blocks are evaluated one by one, with all weights trained and with adapters; of a pipeline's stage,
# what the backward pass of a block needs beside what is kept, at its begin and when all but one block are through. Of
# what a block keeps as copies no more is made.
ALONE_FULL, ALONE_ADAPTED = 2.3, 2.7
WORKING_BLOCKS, LAST_WORKING_BLOCKS = 1.5, 0.5
FORWARD_BLOCKS = 1.2  # of a block without a backward pass
# Where a block is cut over ranks: what they sum is there before and after.
CUT_WORKING_BLOCKS = 1.5
# Whole arrays beside those that are sent: a bucket is put together, comes from everybody and is cut up; a large array
# has a bucket of its own, which is neither put together nor cut up.
GATHER_COPIES = 1.5
REDUCE_COPIES, REDUCE_COPIES_LARGE, REDUCE_COPIES_EMBEDDING = 4.0, 2.5, 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """`kept` until the backward pass, of one micro-batch, of which `in_flight` are there at once; `block` is what one
    block keeps without checkpointing, `copies` among it; `blocks` have a backward pass here. `adapted`: a block's
    weights with their adapters added, where their lengths are needed. `hidden` states between two blocks. `logits`: one
    float32 copy, `logits_cast` from 16 bits, `logits_capped` by a tanh. `gradients` of what is trained here, float32;
    those of `several` micro-batches are added up.

    Sharded: `whole_block` and `whole_end` are gathered weights (the larger of embedding and head), with whole
    gradients of `block_gradients` and `end_gradients`; `largest` is the largest array's gradient; a weight is held in
    `held_bytes`. `called`: what a call of the whole model gathers.
    """

    tokens: int
    kept: int
    block: int
    copies: int
    adapted: int
    blocks: int
    hidden: int
    logits: int
    logits_cast: bool
    logits_capped: bool
    gradients: int
    several: bool
    in_flight: int
    first: bool
    whole_block: int
    whole_end: int
    block_gradients: int
    end_gradients: int
    largest: int
    held_bytes: int
    called: int

    @property
    def activations(self) -> int:
        return self.kept * self.in_flight

    @property
    def sums(self) -> int:
        return self.gradients if self.several else 0

    @property
    def working(self) -> int:
        """What a stage's blocks use beside what they keep."""
        if not self.blocks:
            return round(self.block * FORWARD_BLOCKS)
        return round((self.block - self.copies) * WORKING_BLOCKS) + self.adapted

    @property
    def recomputed(self) -> int:
        """What checkpointed blocks use: copies are made in two of them at most."""
        return round((self.block - self.copies) * RECOMPUTED_BLOCKS) + 2 * self.copies + self.adapted

    @property
    def all_logits(self) -> int:
        """Where forward and backward pass are evaluated together."""
        copies = LOGIT_COPIES_CAST if self.logits_cast else LOGIT_COPIES
        return round(self.logits * copies) + CAPPED_LOGIT_COPIES * self._capped

    @property
    def stage_logits(self) -> int:
        """What the last stage keeps of its logits."""
        copies = STAGE_LOGIT_COPIES_CAST if self.logits_cast else STAGE_LOGIT_COPIES
        return round(self.logits * copies) + STAGE_CAPPED_LOGIT_COPIES * self._capped

    @property
    def _capped(self) -> int:
        """One copy, in the model's own type."""
        if not self.logits_capped:
            return 0
        return self.logits // 2 if self.logits_cast else self.logits

    @property
    def handed(self) -> int:
        """Hidden states that a stage has received, one for each micro-batch in flight, and is about to give."""
        return self.hidden * (2 + (0 if self.first else self.in_flight))


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """`terms` are there at the same time, beside what is held all the time."""

    name: str
    terms: Terms

    @property
    def size(self) -> int:
        return size_of(self.terms)


def size_of(terms: Terms) -> int:
    return sum(size for _, size in terms)


def phases_of(parallel: ParallelMode, held: Held, trained: FineTune, *, checkpointed: bool) -> tuple[Phase, ...]:
    """Of the backward pass."""
    match parallel:
        case "pipeline":
            found = _of_a_stage(held, checkpointed)
        case "sharded":
            found = _of_a_shard(held, ALONE_FULL if trained == "full" else ALONE_ADAPTED)
        case _:
            found = _of_a_whole(held, checkpointed, CUT_WORKING_BLOCKS if parallel == "tensor" else 1.0)
    return tuple(Phase(name="backward pass", terms=terms) for terms in found)


def _kept(held: Held) -> tuple[str, int]:
    return f"activations of {held.tokens * held.in_flight} tokens", held.activations


def _again(held: Held) -> tuple[str, int]:
    return "blocks computed again", held.recomputed


def _of_a_whole(held: Held, checkpointed: bool, working: float) -> Sequence[Terms]:
    """Forward and backward pass are evaluated together: most is there when the backward pass begins, or at its end,
    when activations are gone and gradients are added to those before, joined with other ranks', or squared for their
    norm. With checkpointing logits are gone by the time that gradients come.
    """
    kept, sums, gradients = _kept(held), ("summed gradients", held.sums), ("gradients", held.gradients)
    beside = ("one block more", round(held.block * working) + held.adapted)
    head = (kept, sums, beside, ("logits", held.all_logits))
    end = (beside, gradients, ("their sums or squares", held.gradients))
    return (head, (kept, sums, _again(held), gradients), end) if checkpointed else (head, end)


def _of_a_stage(held: Held, checkpointed: bool) -> Sequence[Terms]:
    """At the begin of a micro-batch's backward pass, and near its end, when the micro-batch's own activations are gone
    and its gradients are about to be added to the sums, which are there from the first one on.
    """
    handed, gradients = ("hidden states sent and received", held.handed), ("gradients", held.gradients)
    beside = max(held.working, round(held.logits * LOGIT_COPIES_BACKWARD))
    if checkpointed:
        beside = max(held.block, round(held.logits * LOGIT_COPIES_BACKWARD))
    head = (
        _kept(held),
        handed,
        ("summed gradients", held.sums),
        ("logits", held.stage_logits),
        ("beside them" if held.logits else "one block more", beside),
    )
    if checkpointed and held.blocks:
        return head, (_kept(held), handed, ("summed gradients", held.sums), _again(held), gradients)
    others = held.kept * (held.in_flight - 1)
    end = (
        (f"activations of {held.tokens * (held.in_flight - 1)} tokens", others),
        handed,
        ("half a block", round(held.block * LAST_WORKING_BLOCKS)),
        gradients,
        ("summed gradients", held.gradients),
    )
    return head, end


def _of_a_shard(held: Held, blocks: float) -> Sequence[Terms]:
    """While a block is computed again and goes back, while the head does, and while an end's or a block's gradients
    are summed over ranks. The head is first: sums are there only if there was a micro-batch before.
    """
    kept = (f"activations of {held.tokens} tokens", held.kept + 2 * held.hidden)
    before, after = (kept, ("summed gradients", held.sums)), (kept, ("summed gradients", held.gradients))
    block, of_block = ("gathered block", held.whole_block), ("its gradients", held.block_gradients)
    again = round((held.block - held.copies) * blocks) + held.copies + held.adapted
    end, of_end = ("gathered head", held.whole_end), ("its gradients", held.end_gradients)
    return (
        (*after, block, of_block, ("block computed again", again)),
        (*before, end, of_end, ("logits", held.all_logits)),
        (*after, block, ("sent", gathering(held.whole_block))),
        (*before, end, ("sent", gathering(held.whole_end))),
        (*after, of_block, ("sent", _reducing(held, held.block_gradients))),
        (*before, of_end, ("sent", _reducing(held, held.end_gradients))),
        (*after, of_end, ("sent", round(REDUCE_COPIES_EMBEDDING * held.end_gradients))),
    )


def gathering(whole: int) -> int:
    """Beside the whole arrays, while they are gathered."""
    return round(GATHER_COPIES * min(whole, BUCKET_BYTES))


def _reducing(held: Held, gradients: int) -> int:
    """Beside whole gradients (float32), while they are summed over ranks."""
    bucket = BUCKET_BYTES * 4 // held.held_bytes
    largest = min(held.largest, gradients)
    return round(max(REDUCE_COPIES * min(gradients, bucket), REDUCE_COPIES_LARGE * largest))
