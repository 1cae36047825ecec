"""Sizes of what training adds to a model: which layers are adapted, how much is trained, what a block keeps of a token.

Works on an Architecture and on settings. Counts elements and bytes per token; how many tokens, blocks and ranks there
are is `domain.train_memory`'s business. What is kept was found by measuring MLX's peak (tests/training).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from realign_cluster.domain.memory import QUANTISED_GROUP, ModelFacts, bits_per_weight
from realign_cluster.domain.parameters import Architecture
from realign_cluster.domain.training import TrainSettings

FLOAT32_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """One linear layer of a block, or the same layer of all its experts. `uses` is how many of them a token meets."""

    key: str  # the last part of its path
    inputs: int
    outputs: int
    reads: str  # linears that read the same array share its name
    experts: int = 1
    uses: int = 1


def linears(shape: Architecture) -> tuple[Linear, ...]:
    """Those of one block; of a mixture, with its experts and router. Latent attention is counted by its widths."""
    hidden, query, key_value = shape.hidden, attention_widths(shape)[0], attention_widths(shape)[1]
    value = attention_widths(shape)[2]
    found = [
        Linear(key="q_proj", inputs=hidden, outputs=query, reads="attention"),
        Linear(key="k_proj", inputs=hidden, outputs=key_value, reads="attention"),
        Linear(key="v_proj", inputs=hidden, outputs=value, reads="attention"),
        Linear(key="o_proj", inputs=_attended(shape), outputs=hidden, reads="attended"),
    ]
    if shape.mixture_layers:
        found.append(Linear(key="gate", inputs=hidden, outputs=shape.experts, reads="mlp"))
        found += _mlp(shape, shape.expert_intermediate, experts=shape.experts, uses=shape.experts_per_token)
        if shape.shared_intermediate:
            found += _mlp(shape, shape.shared_intermediate)
        return tuple(found)
    return (*found, *_mlp(shape, shape.intermediate))


def attention_widths(shape: Architecture) -> tuple[int, int, int]:
    """Elements of all queries, keys and values of one token."""
    if (latent := shape.latent) is not None:
        head = latent.nope_dim + latent.rope_dim
        return shape.heads * head, shape.heads * head, shape.heads * latent.value_dim
    return shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim, shape.kv_heads * shape.head_dim


def _attended(shape: Architecture) -> int:
    return shape.heads * (shape.latent.value_dim if shape.latent is not None else shape.head_dim)


def _mlp(shape: Architecture, width: int, *, experts: int = 1, uses: int = 1) -> Iterator[Linear]:
    named = ("gate_proj", "up_proj") if shape.gated else ("up_proj",)
    for key in named:
        yield Linear(key=key, inputs=shape.hidden, outputs=width, reads="mlp", experts=experts, uses=uses)
    yield Linear(key="down_proj", inputs=width, outputs=shape.hidden, reads="product", experts=experts, uses=uses)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """Parameters that are trained, as they lie in the model. `lowest` is the first block whose activations are kept:
    nothing below it has a gradient.
    """

    per_block: int  # of each block from `lowest` on
    ends: int  # embedding, norm, head
    lowest: int
    blocks: int
    bytes_each: int  # as the model holds them

    @property
    def total(self) -> int:
        return self.per_block * (self.blocks - self.lowest) + self.ends


def trained(model: ModelFacts, settings: TrainSettings) -> Trained:
    """Of a model whose architecture could be read; otherwise adapters are taken to be 1 % of the parameters."""
    compute = compute_bytes(model, settings)
    shape = model.architecture
    if shape is None:
        everything = settings.fine_tune == "full"
        count = model.parameters.total if everything else model.parameters.total // 100
        size = compute if everything else FLOAT32_BYTES
        return Trained(per_block=0, ends=count, lowest=0, blocks=1, bytes_each=size)
    if settings.fine_tune == "full":
        ends = end_parameters(model)
        per_block = (model.parameters.total - ends) // shape.layers
        return Trained(per_block=per_block, ends=ends, lowest=0, blocks=shape.layers, bytes_each=compute)
    adapted = shape.layers if settings.adapter.layers < 1 else min(settings.adapter.layers, shape.layers)
    rank = settings.adapter.rank
    per_block = 0
    for linear in adapted_linears(shape, settings):
        per_block += linear.experts * rank * (linear.inputs + linear.outputs)
        per_block += linear.outputs if settings.fine_tune == "dora" else 0
    return Trained(
        per_block=per_block, ends=0, lowest=shape.layers - adapted, blocks=shape.layers, bytes_each=FLOAT32_BYTES
    )


def adapted_linears(shape: Architecture, settings: TrainSettings) -> tuple[Linear, ...]:
    """Of one block; all of them in full fine-tuning. A key this page does not know is taken for a wide layer."""
    every = linears(shape)
    if settings.fine_tune == "full" or not settings.adapter.keys:
        return every
    named = [key.rpartition(".")[2] for key in settings.adapter.keys]
    known = {linear.key for linear in every}
    widest = max(every, key=lambda linear: linear.inputs + linear.outputs)
    return (*(linear for linear in every if linear.key in named), *(widest for key in named if key not in known))


def largest_array(shape: Architecture) -> int:
    """Elements of a block's largest weight; all experts' are one."""
    return max(linear.experts * linear.inputs * linear.outputs for linear in linears(shape))


def adapter_work(shape: Architecture, settings: TrainSettings) -> int:
    """Adapter parameters of one block that a token's forward pass multiplies with."""
    adapted = adapted_linears(shape, settings)
    return sum(linear.uses * settings.adapter.rank * (linear.inputs + linear.outputs) for linear in adapted)


def end_parameters(model: ModelFacts) -> int:
    """Embedding, last norm and head."""
    shape = model.architecture
    if shape is None:
        return 0
    return shape.vocabulary * shape.hidden * (1 if shape.tied else 2) + shape.hidden


def weight_bits(model: ModelFacts, settings: TrainSettings) -> float:
    """As the weights are held while training: a dtype that was asked for replaces the model's, but of quantised weights
    it is only the scales'.
    """
    if settings.dtype == "auto":
        return bits_per_weight(model.dtype)
    if model.dtype.endswith("-bit"):
        return bits_per_weight(model.dtype) + (32 / QUANTISED_GROUP if settings.dtype == "float32" else 0)
    return bits_per_weight(settings.dtype)


def compute_bytes(model: ModelFacts, settings: TrainSettings) -> int:
    """Of an activation."""
    if settings.dtype == "auto":
        return model.compute_bytes
    return FLOAT32_BYTES if settings.dtype == "float32" else 2


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockKeeps:
    """Bytes that one block keeps of one token until its backward pass. Tensor parallelism cuts `cut` and `scores`.
    `copies` among them: the same values in another order, or before they are scaled.
    """

    whole: int
    cut: int
    scores: int
    copies: int

    def on(self, ranks: int) -> int:
        return self.whole + -(-(self.cut + self.scores) // ranks)


def block_keeps(
    shape: Architecture, settings: TrainSettings, *, row_tokens: int, size: int, backend: str
) -> BlockKeeps:
    """`size`: bytes of an activation; `row_tokens`: length of the sequences, which is what attention scores are wide.

    Kept are the residual stream, what rotary positions and attention leave, the parts of the gated product, and the
    inputs of every layer that is trained: a frozen layer needs its weights only. Adapters are float32, so their inputs
    are kept in float32 however small the model's own type is, and once for each of them.
    """
    query, key, value = attention_widths(shape)
    whole, cut = 2 * shape.hidden * size, (query + key + value) * size
    if shape.head_norms:
        cut += (query + key) * size
    parts = 4 if shape.gated else 2  # gate, its sigmoid, their product, up
    width = shape.experts_per_token * shape.expert_intermediate if shape.mixture_layers else shape.intermediate
    cut += parts * (width + shape.shared_intermediate) * size
    copies = 0
    if shape.mixture_layers:  # rows sorted by expert, what experts give, the router's probabilities
        copies = 2 * shape.experts_per_token * shape.hidden * size
        whole += copies + shape.experts * size
    if shape.post_norms:  # what attention and MLP gave
        whole += 2 * shape.hidden * size
    if settings.fine_tune == "full":  # its norms are trained: what they have scaled to 1
        whole += (4 if shape.post_norms else 2) * shape.hidden * size
    adapted = adapted_linears(shape, settings)
    if settings.fine_tune == "dora":
        copies += sum(linear.outputs for linear in adapted) * size
    for is_cut, bytes_kept in _inputs_kept(adapted, settings, size):
        cut, whole = (cut + bytes_kept, whole) if is_cut else (cut, whole + bytes_kept)
    # Only CUDA has a fused attention with a backward pass: Metal's and the CPU's keep every probability. Capped scores
    # are fused nowhere, and their tanh is kept as well.
    scores = shape.heads * row_tokens * size * (2 if shape.capped else 0 if backend == "cuda" else 1)
    return BlockKeeps(whole=whole, cut=cut, scores=scores, copies=copies)


def _inputs_kept(found: tuple[Linear, ...], settings: TrainSettings, size: int) -> Iterator[tuple[bool, int]]:
    """(whether tensor parallelism cuts it, bytes) for the arrays that trained layers read."""
    adapters = settings.fine_tune != "full"
    dropped = adapters and settings.adapter.dropout > 0
    own_copy = adapters and (size < FLOAT32_BYTES or dropped)
    shared: set[tuple[str, int]] = set()
    for linear in found:
        inner = linear.reads in ("attended", "product")
        if own_copy or (linear.reads, linear.experts) not in shared:
            shared.add((linear.reads, linear.experts))
            each = FLOAT32_BYTES if own_copy else size
            yield inner, linear.inputs * linear.uses * (each + (1 if dropped else 0))
        if settings.fine_tune == "dora":  # what is scaled by the learned length
            yield not inner, linear.outputs * size
