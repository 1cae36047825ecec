"""Attention and SwiGLU for MLX's CPU backend, with NumPy's vectorised exp: MLX's own takes about 10 ns an element,
NumPy half of one.

In force only within `cpu_kernels(model)`, by replacing two names in the model's module while its forward pass runs.
What they do not handle (attention sinks, quantised caches, other activations) goes to MLX as before. Results differ
from MLX's by rounding only.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt
from mlx_lm.models import activations, base, switch_layers

BLOCK = 128  # rows of queries at a time: keys to the right of a block are not looked at

Floats = npt.NDArray[np.float32]


@contextmanager
def cpu_kernels(model: nn.Module) -> Iterator[None]:
    """Use these kernels in the modules that define `model` and its experts, until the end of the block."""
    module = sys.modules[type(model).__module__]
    replaced: list[tuple[ModuleType, str, Any]] = []
    for place, name, original, kernel in (
        (module, "scaled_dot_product_attention", base.scaled_dot_product_attention, attention),
        (module, "swiglu", activations.swiglu, swiglu),
        (switch_layers, "swiglu", activations.swiglu, swiglu),
    ):
        if getattr(place, name, None) is original:
            replaced.append((place, name, original))
            setattr(place, name, kernel)
    try:
        yield
    finally:
        for place, name, original in replaced:
            setattr(place, name, original)


def takes_attention_kernel(model: nn.Module) -> bool:
    """Whether the model's attention goes through the function that is replaced."""
    used = getattr(sys.modules[type(model).__module__], "scaled_dot_product_attention", None)
    return used is base.scaled_dot_product_attention


def attention(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    cache: Any,
    scale: float,
    mask: mx.array | str | None,
    sinks: mx.array | None = None,
) -> mx.array:
    """softmax(scale q k^T + mask) v. Shapes (batch, heads, n, width) and (batch, key heads, m, width), float32.

    `mask` is None, "causal" (query i sees keys up to m - n + i), or an array of bools or addends.
    """
    if sinks is not None or hasattr(cache, "bits") or queries.dtype != mx.float32 or values.dtype != mx.float32:
        original: Callable[..., mx.array] = base.scaled_dot_product_attention
        return original(queries, keys, values, cache=cache, scale=scale, mask=mask, sinks=sinks)
    batch, heads, n, width = queries.shape
    key_heads, m = keys.shape[1], keys.shape[2]
    # (batch, key heads, repeats, n, width): the queries that share a key head
    grouped = (queries * scale).reshape(batch, key_heads, heads // key_heads, n, width)
    keys, values = keys[:, :, None], values[:, :, None]
    if not isinstance(mask, str):
        if mask is not None and mask.ndim == 4 and mask.shape[1] != 1:
            mask = mask.reshape(mask.shape[0], key_heads, -1, *mask.shape[2:])
        elif mask is not None and mask.ndim == 4:
            mask = mask[:, :, None]
        out = _softmax_product(grouped @ keys.swapaxes(-1, -2), values, mask)
        return out.reshape(batch, heads, n, -1)
    blocks = []
    for start in range(0, n, BLOCK):
        end = min(start + BLOCK, n)
        seen = m - n + end
        scores = grouped[..., start:end, :] @ keys[..., :seen, :].swapaxes(-1, -2)
        blocks.append(_softmax_product(scores, values[..., :seen, :], _triangle(end - start)))
    out = blocks[0] if len(blocks) == 1 else mx.concatenate(blocks, axis=-2)
    return out.reshape(batch, heads, n, -1)


def _softmax_product(scores: mx.array, values: mx.array, mask: mx.array | Floats | None) -> mx.array:
    """softmax(scores + mask) @ values; a NumPy mask is added to the last columns. Works in the memory of `scores`."""
    if isinstance(mask, mx.array):
        scores = mx.where(mask, scores, -np.inf) if mask.dtype == mx.bool_ else scores + mask
    mx.eval(scores)
    weights: Floats = np.array(scores, copy=False)
    if isinstance(mask, np.ndarray):
        weights[..., -mask.shape[-1] :] += mask
    weights -= weights.max(axis=-1, keepdims=True)
    np.exp(weights, out=weights)
    return (scores @ values) / mx.array(weights.sum(axis=-1, keepdims=True))


_triangles: dict[int, Floats] = {}


def _triangle(size: int) -> Floats | None:
    """(size, size): 0 on and below the diagonal, -inf above it."""
    if size == 1:
        return None
    if size not in _triangles:
        _triangles[size] = np.triu(np.full((size, size), -np.inf, dtype=np.float32), k=1)
    return _triangles[size]


def swiglu(gate: mx.array, x: mx.array) -> mx.array:
    """silu(gate) * x, float32; other types as MLX does it. Works in the memory of `gate`, which nothing else reads."""
    if gate.dtype != mx.float32:
        original: Callable[..., mx.array] = activations.swiglu
        return original(gate, x)
    mx.eval(gate, x)
    gates: Floats = np.array(gate, copy=False)
    below = _scratch(gates.shape)
    np.negative(gates, out=below)
    np.exp(below, out=below)
    below += 1.0
    gates /= below
    return gate * x


_scratches: dict[str, Floats] = {}


def _scratch(shape: tuple[int, ...]) -> Floats:
    """Memory that is used again: fresh pages for every call would cost more than the arithmetic."""
    size = int(np.prod(shape))
    if "swiglu" not in _scratches or _scratches["swiglu"].size < size:
        _scratches["swiglu"] = np.empty(size, dtype=np.float32)
    return _scratches["swiglu"][:size].reshape(shape)
