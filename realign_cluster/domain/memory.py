"""Memory arithmetic of a model that scores: what it needs, what a node holds, and the sum as text.

Works on the dictionary of a config.json and on byte counts. Must not read files, know MLX, or know how a worker batches
beyond the numbers passed in. Everything is in bytes; GiB in texts is 2**30, GB is 10**9.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from realign_cluster.domain.job import NO_MODEL
from realign_cluster.domain.parameters import Architecture, Parameters, count_parameters, read_architecture

GIB = 2**30
METAL_SHARE = 0.75  # of RAM that Metal wires by default (iogpu.wired_limit_mb = 0)
CPU_SHARE = 0.80  # of RAM, where the node did not say what is available
PROCESS_BYTES = 300 * 2**20  # interpreter, MLX, tokenizer
WEIGHTS_SLACK = 0.03  # allocator granularity and copies made while loading
LOGIT_ROWS = 1024  # positions whose logits exist at once
LOGIT_COPIES = 3  # logits, their exponentials, the difference
ACTIVATION_COPIES = 2
CPU_ATTENTION_BLOCK = 512  # on CPU the attention scores of a block of keys exist in memory; Metal and CUDA fuse them
QUANTISED_GROUP = 64  # weights that share a 16-bit scale and a 16-bit bias in mlx-lm's default quantisation


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """A model as far as planning needs it. `weights_bytes` is what its safetensors occupy, and so what loading them
    does.
    """

    name: str
    model_hash: str = ""
    weights_bytes: int
    parameters: Parameters
    dtype: str  # "float32", "bfloat16", "4-bit"
    architecture: Architecture | None  # None: a config this page cannot read; only the weights are counted
    config: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def billions(self) -> float:
        return self.parameters.total / 1e9

    @property
    def compute_bytes(self) -> int:
        """Bytes of an activation: quantised weights compute in 16 bits."""
        return 4 if self.dtype == "float32" else 2

    @property
    def kv_bytes_per_token(self) -> int:
        if self.architecture is None:
            return 0
        return self.architecture.kv_elements_per_token * self.compute_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What of a model is on one node: fractions of its weights and of its cached keys and values, and whether logits
    are computed there.
    """

    weights: float = 1.0
    cache: float = 1.0
    head: bool = True


WHOLE = Share()


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryNeed:
    weights: int
    kv_cache: int
    activations: int
    logits: int
    process: int
    batch_tokens: int
    kv_per_token: int

    @property
    def total(self) -> int:
        return self.weights + self.kv_cache + self.activations + self.logits + self.process

    def text(self) -> str:
        """The sum, term by term."""
        return (
            f"weights {gib(self.weights)} + KV cache {self.batch_tokens} tokens x {kib(self.kv_per_token)} = "
            f"{gib(self.kv_cache)} + activations {gib(self.activations)} + logits {gib(self.logits)} + process "
            f"{gib(self.process)} = {gib(self.total)}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryLimit:
    bytes: int
    source: str  # "3/4 of 128.0 GiB, what Metal wires by default"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Whether a model scores on a node. `batch_tokens` is the largest batch that fits, 0 if none does."""

    fits: bool
    need: MemoryNeed
    limit: MemoryLimit
    batch_tokens: int
    text: str


def gib(count: float) -> str:
    if abs(count) < 0.05 * GIB:
        return f"{count / 2**20:.1f} MiB"
    return f"{count / GIB:.1f} GiB"


def kib(count: float) -> str:
    return f"{count / 1024:.1f} KiB" if count < 2**20 else f"{count / 2**20:.2f} MiB"


def dtype_of(config: Mapping[str, Any]) -> str:
    """ "4-bit" for a quantised model, else the dtype its config names ("bfloat16" where it names none)."""
    text = config.get("text_config")
    text = text if isinstance(text, Mapping) else {}
    for source in (config, text):
        quantization = source.get("quantization") or source.get("quantization_config")
        if isinstance(quantization, Mapping):
            bits = quantization.get("bits")
            if isinstance(bits, int):
                return f"{bits}-bit"
            if "4" in str(quantization.get("quant_method", "")):
                return "4-bit"
            if "8" in str(quantization.get("quant_method", "")):
                return "8-bit"
    for source in (config, text):
        named = source.get("torch_dtype") or source.get("dtype")
        if isinstance(named, str):
            return named.removeprefix("torch.")
    return "bfloat16"


def bits_per_weight(dtype: str) -> float:
    """Stored bits of a weight; quantised weights carry a 16-bit scale and bias per group of 64."""
    if dtype.endswith("-bit"):
        return int(dtype.removesuffix("-bit")) + 32 / QUANTISED_GROUP
    return {"float32": 32.0, "float64": 64.0, "float8_e4m3fn": 8.0}.get(dtype, 16.0)


def model_facts(config: Mapping[str, Any], weights_bytes: int, *, name: str, model_hash: str = "") -> ModelFacts:
    """Facts from a config.json and the bytes of its safetensors; `weights_bytes` 0 means: estimate them from the
    config.

    Parameter counts come from the config where it is llama-like (dense, mixture or latent attention) and agrees
    with the bytes within a third; otherwise from the bytes, and `parameters.source` says so.
    """
    dtype = dtype_of(config)
    bits = bits_per_weight(dtype)
    architecture = read_architecture(config)
    if architecture is None:
        total = round(weights_bytes * 8 / bits)
        parameters = Parameters(total=total, active=total, source=f"{weights_bytes} bytes at {bits:g} bits per weight")
        return ModelFacts(
            name=name,
            model_hash=model_hash,
            weights_bytes=weights_bytes,
            parameters=parameters,
            dtype=dtype,
            architecture=None,
            config=config,
        )
    parameters = count_parameters(architecture)
    if weights_bytes == 0:
        weights_bytes = round(parameters.total * bits / 8)
    by_bytes = weights_bytes * 8 / bits
    if not 0.75 <= by_bytes / parameters.total <= 1.34:
        active = round(by_bytes * parameters.active / parameters.total)
        source = f"{weights_bytes} bytes at {bits:g} bits per weight (the config would give {parameters.total})"
        parameters = Parameters(total=round(by_bytes), active=active, source=source)
    return ModelFacts(
        name=name,
        model_hash=model_hash,
        weights_bytes=weights_bytes,
        parameters=parameters,
        dtype=dtype,
        architecture=architecture,
        config=config,
    )


def no_model() -> ModelFacts:
    """The facts of a job that needs no model (`noop`)."""
    nothing = Parameters(total=0, active=0, source="no model")
    return ModelFacts(name=NO_MODEL, weights_bytes=0, parameters=nothing, dtype="none", architecture=None)


def memory_need(model: ModelFacts, batch_tokens: int, *, backend: str = "metal", share: Share = WHOLE) -> MemoryNeed:
    """Upper estimate for one batch of `batch_tokens` (padding included), keys and values of the whole batch kept.

    Activations: the residual stream with its norms and the widest of attention and MLP, twice. Logits: float32, for
    LOGIT_ROWS positions at a time.
    """
    weights = round(model.weights_bytes * (1 + WEIGHTS_SLACK) * share.weights)
    kv_per_token = round(model.kv_bytes_per_token * share.cache)
    architecture = model.architecture
    activations = logits = 0
    if architecture is not None:
        width = 4 * architecture.hidden + max(3 * architecture.active_intermediate, architecture.attention_width)
        activations = batch_tokens * width * model.compute_bytes * ACTIVATION_COPIES
        if backend == "cpu":
            activations += architecture.heads * batch_tokens * CPU_ATTENTION_BLOCK * 4
        if share.head:
            logits = min(batch_tokens, LOGIT_ROWS) * architecture.vocabulary * 4 * LOGIT_COPIES
    return MemoryNeed(
        weights=weights,
        kv_cache=batch_tokens * kv_per_token,
        activations=activations,
        logits=logits,
        process=PROCESS_BYTES,
        batch_tokens=batch_tokens,
        kv_per_token=kv_per_token,
    )


def memory_limit(
    *,
    backend: str,
    memory_bytes: int,
    working_set_bytes: int = 0,
    available_bytes: int | None = None,
    hostfile_limit_bytes: int | None = None,
) -> MemoryLimit:
    """What one model may occupy on a node: the hostfile's limit if it is the smaller, else what the device gives."""
    if backend == "cpu":
        if available_bytes is not None:
            limit = min(available_bytes, memory_bytes) if memory_bytes else available_bytes
            source = f"available of {gib(memory_bytes)}"
        else:
            limit, source = round(memory_bytes * CPU_SHARE), f"{CPU_SHARE:.0%} of {gib(memory_bytes)}"
    elif 0 < working_set_bytes < memory_bytes:
        limit, source = working_set_bytes, f"the device's recommended working set, of {gib(memory_bytes)}"
    elif backend == "metal":
        limit, source = round(memory_bytes * METAL_SHARE), f"3/4 of {gib(memory_bytes)}, what Metal wires by default"
    else:
        limit, source = memory_bytes, f"the device's {gib(memory_bytes)}"
    if hostfile_limit_bytes is not None and hostfile_limit_bytes < limit:
        return MemoryLimit(
            bytes=hostfile_limit_bytes, source=f"the hostfile's limit; without it {gib(limit)}, {source}"
        )
    return MemoryLimit(bytes=limit, source=source)


def largest_batch(
    model: ModelFacts, limit: MemoryLimit, *, backend: str, share: Share = WHOLE, ceiling: int = 1 << 20
) -> int:
    """Most tokens in a batch within `limit`, 0 when not even one fits. The need grows with the batch, so bisect."""
    if memory_need(model, 1, backend=backend, share=share).total > limit.bytes:
        return 0
    low, high = 1, ceiling
    while low < high:
        middle = (low + high + 1) // 2
        if memory_need(model, middle, backend=backend, share=share).total <= limit.bytes:
            low = middle
        else:
            high = middle - 1
    return low


def judge_fit(
    model: ModelFacts,
    limit: MemoryLimit,
    *,
    longest_row_tokens: int,
    backend: str,
    share: Share = WHOLE,
    beside_bytes: int = 0,
) -> Fit:
    """A model, or a share of one, fits where the longest row can be scored alone; more memory only makes batches
    larger. `beside_bytes`: weights of adapters and of a reference model that have to be there as well.
    """
    if beside_bytes:
        beside = round(beside_bytes * (1 + WEIGHTS_SLACK))
        limit = MemoryLimit(
            bytes=limit.bytes - beside, source=f"{limit.source}, less {gib(beside)} of adapters and reference"
        )
    need = memory_need(model, longest_row_tokens, backend=backend, share=share)
    fits = need.total <= limit.bytes
    difference = abs(limit.bytes - need.total)
    verdict = f"fits, {gib(difference)} left for larger batches" if fits else f"does not fit, {gib(difference)} short"
    return Fit(
        fits=fits,
        need=need,
        limit=limit,
        batch_tokens=largest_batch(model, limit, backend=backend, share=share) if fits else 0,
        text=f"{need.text()}; holds {gib(limit.bytes)} ({limit.source}): {verdict}",
    )


def weights_text(model: ModelFacts) -> str:
    """ "405.9 billion parameters x 16 bits = 811.7 GB (756.0 GiB) in bfloat16"."""
    count = model.parameters.total
    amount = f"{count / 1e9:.1f} billion" if count >= 1e9 else f"{count / 1e6:.2f} million"
    size = model.weights_bytes
    sizes = f"{size / 1e9:.1f} GB ({gib(size)})" if size >= 1e9 else f"{size / 1e6:.1f} MB"
    return f"{amount} parameters x {size * 8 / max(count, 1):.3g} bits = {sizes} in {model.dtype}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeMemory:
    """One node's part in the question whether anything could hold the model."""

    name: str
    backend: str
    memory_bytes: int
    limit: MemoryLimit


def quantised(model: ModelFacts, bits: int) -> ModelFacts:
    """The same model as mlx-lm's default quantisation to `bits` would make it."""
    dtype = f"{bits}-bit"
    return ModelFacts(
        name=model.name,
        weights_bytes=round(model.parameters.total * bits_per_weight(dtype) / 8),
        parameters=model.parameters,
        dtype=dtype,
        architecture=model.architecture,
    )


def ways_to_fit(model: ModelFacts, nodes: Sequence[NodeMemory], *, longest_row_tokens: int) -> tuple[str, ...]:
    """What would make a model that no node holds usable: fewer bits, a higher wired limit, more memory."""
    ways: list[str] = []
    stored_bits = bits_per_weight(model.dtype)
    for bits in (8, 4):
        smaller = quantised(model, bits)
        if smaller.weights_bytes >= model.weights_bytes * 0.95 or bits >= stored_bits:
            continue
        holders = [
            node.name
            for node in nodes
            if judge_fit(smaller, node.limit, longest_row_tokens=longest_row_tokens, backend=node.backend).fits
        ]
        size = f"{bits}-bit: {smaller.weights_bytes / 1e9:.1f} GB ({gib(smaller.weights_bytes)})"
        command = f"mlx_lm.convert --hf-path {model.name} -q --q-bits {bits}"
        if holders:
            ways.append(f"{size} fits {', '.join(holders)}: {command}")
        else:
            ways.append(f"{size} does not fit one node either")
    for node in nodes:
        raised = node.memory_bytes - 8 * GIB  # leave the system 8 GiB
        need = memory_need(model, longest_row_tokens, backend=node.backend).total
        if node.backend == "metal" and node.limit.bytes < need <= raised:
            ways.append(
                f"{node.name}: sudo sysctl iogpu.wired_limit_mb={raised // 2**20} lets Metal wire {gib(raised)} of "
                f"{gib(node.memory_bytes)} (until reboot)"
            )
    largest = max(nodes, key=lambda node: node.limit.bytes, default=None)
    if largest is not None and largest.limit.bytes > 0:
        need = memory_need(model, longest_row_tokens, backend=largest.backend).total
        held = sum(node.limit.bytes for node in nodes)
        missing = need - held
        if missing > 0:
            more = -(-missing // largest.limit.bytes)
            ways.append(
                f"more nodes: these hold {gib(held)} together, {gib(need)} are needed; {more} more like {largest.name} "
                f"({gib(largest.limit.bytes)} each) would hold it sharded"
            )
    return tuple(ways)
