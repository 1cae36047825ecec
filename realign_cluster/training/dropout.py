"""Dropout as a pure function of (key of the token, layer, feature): the same row gets the same mask wherever it is.

Neither padding nor packing, neither rank nor sharding changes what is dropped, and nothing is drawn from a generator
whose state would have to be kept. Must not know what the keys are made of.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from hashlib import blake2b
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from realign_cluster.domain.errors import UsageError

GOLDEN = 0x9E3779B1


class DropoutContext:
    """What all adapter layers of a model share: the keys of the tokens that are in the model now, (B, T) uint32.

    Without keys nothing is dropped. The keys have to stay until the gradients are asked for: with gradient
    checkpointing the backward pass runs the layers again.
    """

    def __init__(self) -> None:
        self._keys: mx.array | None = None
        self._expert_keys: mx.array | None = None

    @property
    def active(self) -> bool:
        return self._keys is not None

    @contextmanager
    def keyed(self, keys: mx.array | None) -> Iterator[None]:
        """`keys` (B, T) uint32 hold until the end of the block."""
        before, self._keys = self._keys, keys
        try:
            yield
        finally:
            self._keys = before

    @contextmanager
    def routed(self, indices: mx.array) -> Iterator[None]:
        """Experts are about to be run for `indices` (B, T, k), as mlx-lm's switch layers do: sorted by expert."""
        before, self._expert_keys = self._expert_keys, None
        if self._keys is not None:
            order = mx.argsort(indices.flatten())
            self._expert_keys = self._keys.flatten()[order // indices.shape[-1]]
        try:
            yield
        finally:
            self._expert_keys = before

    def of_tokens(self, shape: tuple[int, ...], name: str) -> mx.array:
        """Keys for a layer's input, one a token: (B, T), or flattened as the model may have done."""
        assert self._keys is not None
        if self._keys.shape == shape:
            return self._keys
        if len(shape) == 1 and self._keys.size == shape[0]:
            return self._keys.flatten()
        raise UsageError(
            f"dropout cannot tell the tokens apart in the input of {name}, of shape {shape}",
            "dropout 0, or adapter keys without that layer",
        )

    def of_experts(self, indices: mx.array, name: str, *, sorted_indices: bool) -> mx.array:
        """Keys of the shape of `indices`: (n,) where they are sorted by expert, else (B, T, k)."""
        assert self._keys is not None
        if self._expert_keys is None:
            raise UsageError(
                f"dropout cannot tell the tokens apart in the experts of {name}",
                "dropout 0, or adapter keys without that layer",
            )
        keys = self._expert_keys if sorted_indices else self._keys.reshape(*indices.shape[:-1], 1)
        return _mix(keys + indices.astype(mx.uint32) * mx.array(GOLDEN, dtype=mx.uint32))


def drop(values: mx.array, keys: mx.array, salt: int, features: mx.array, rate: float) -> mx.array:
    """`values` (..., D) with a fraction `rate` set to 0 and the others divided by 1 - rate.

    `keys` (...) uint32, `features` (D,) uint32 in the unsharded layer, `salt` tells layers apart.
    """
    kept = _kept(keys ^ mx.array(salt, dtype=mx.uint32), features, mx.array(int(rate * 2**32), dtype=mx.uint32))
    return mx.where(kept, values * (1 / (1 - rate)), mx.zeros((), dtype=values.dtype))


def salt_of(name: str) -> int:
    """32 bits of a layer's name in the unsharded model."""
    return int.from_bytes(blake2b(name.encode(), digest_size=4).digest(), "little")


def remember_routing(experts: nn.Module, dropout: DropoutContext) -> None:
    """Has `experts`, an mlx-lm SwitchGLU or SwitchMLP, tell `dropout` where its tokens go whenever it is called.

    The linear layers inside see tokens sorted by expert and cannot know whose they are.
    """
    plain: Any = type(experts)

    class Routed(plain):  # type: ignore[misc]
        def __call__(self, x: mx.array, indices: mx.array) -> mx.array:
            with dropout.routed(indices):
                result: mx.array = super().__call__(x, indices)
            return result

    experts.__class__ = Routed


@partial(mx.compile, shapeless=True)
def _kept(keys: mx.array, features: mx.array, threshold: mx.array) -> mx.array:
    tokens = mx.expand_dims(_mix(keys), -1)
    return _mix(tokens + features * mx.array(GOLDEN, dtype=mx.uint32)) >= threshold


def _mix(bits: mx.array) -> mx.array:
    """MurmurHash3's 32-bit finaliser: every input bit changes each output bit with probability 1/2."""
    bits = (bits ^ (bits >> 16)) * mx.array(0x85EBCA6B, dtype=mx.uint32)
    bits = (bits ^ (bits >> 13)) * mx.array(0xC2B2AE35, dtype=mx.uint32)
    return bits ^ (bits >> 16)
