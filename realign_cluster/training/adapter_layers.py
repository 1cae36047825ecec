"""LoRA and DoRA around one linear layer, with mlx-lm's parameter names and shapes.

The layer may hold only a piece of its weights: a `Site` says which, and what has to be joined with other ranks. Must
not know models, files or how a model came to be sharded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

from realign_cluster.domain.training import AdapterSettings
from realign_cluster.training.dropout import DropoutContext, drop, salt_of
from realign_cluster.training.parallel.base import Piece
from realign_cluster.training.pieces import cut

Ranges = tuple[tuple[int, int], ...]
Join = Callable[[mx.array], mx.array]


def unchanged(value: mx.array) -> mx.array:
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where a layer stands: its path in the model, which inputs and outputs of the unsharded layer it holds.

    `enter` is applied to the input (its backward pass may join gradients), `leave` to the output without bias, `join`
    to sums over the inputs. `lengths` are those of the unsharded weight's rows, (outputs,) float32, for DoRA, where
    only some of the inputs are here.
    """

    name: str
    inputs: int  # of the unsharded layer
    input_ranges: Ranges
    outputs: int
    output_ranges: Ranges
    enter: Join = unchanged
    leave: Join = unchanged
    join: Join = unchanged
    lengths: mx.array | None = None

    @property
    def sharded(self) -> bool:
        return self.input_ranges != ((0, self.inputs),) or self.output_ranges != ((0, self.outputs),)

    def of_inputs(self, *shape: int, axis: int) -> Piece:
        """Of an unsharded array whose `axis` are the inputs."""
        return _piece(shape, axis, self.input_ranges)

    def of_outputs(self, *shape: int, axis: int) -> Piece:
        return _piece(shape, axis, self.output_ranges)


def whole_site(name: str, linear: nn.Module) -> Site:
    """Of a layer that is not sharded."""
    inputs, outputs = dimensions(linear)
    return Site(name=name, inputs=inputs, input_ranges=((0, inputs),), outputs=outputs, output_ranges=((0, outputs),))


def dimensions(linear: nn.Module) -> tuple[int, int]:
    """(inputs, outputs) of a linear or switch layer, as far as it is here."""
    inputs, outputs = linear.weight.shape[-1], linear.weight.shape[-2]
    return (inputs * 32 // linear.bits if _quantised(linear) else inputs), outputs


class Adapter(nn.Module):  # type: ignore[misc]
    """What the layers share. `off`: only the base layer is run."""

    def __init__(self, linear: nn.Module, site: Site, settings: AdapterSettings, dropout: DropoutContext) -> None:
        super().__init__()
        self.linear = linear
        self.off = False
        self.scale = settings.scale
        self.site = site
        self._rate = settings.dropout
        self._dropout = dropout
        self._salt = salt_of(site.name)

    def pieces(self) -> dict[str, Piece]:
        """Where its own parameters lie in the unsharded ones, by name."""
        raise NotImplementedError

    def _features(self) -> mx.array:
        return mx.concatenate([mx.arange(*bounds, dtype=mx.uint32) for bounds in self.site.input_ranges])


class LoraLinear(Adapter):
    """x -> W x + b + scale B A x, with `lora_a` (inputs, rank) and `lora_b` (rank, outputs) float32."""

    def __init__(
        self, linear: nn.Module, site: Site, settings: AdapterSettings, dropout: DropoutContext, seed: int
    ) -> None:
        super().__init__(linear, site, settings, dropout)
        self._rank = settings.rank
        self.lora_a = initial_a(site, seed, self.pieces()["lora_a"])
        self.lora_b = mx.zeros((settings.rank, dimensions(linear)[1]))

    def pieces(self) -> dict[str, Piece]:
        return {
            "lora_a": self.site.of_inputs(self.site.inputs, self._rank, axis=0),
            "lora_b": self.site.of_outputs(self._rank, self.site.outputs, axis=1),
        }

    def __call__(self, x: mx.array) -> mx.array:
        if self.off:
            base: mx.array = self.linear(x)
            return base
        y = self.site.leave(self._scaled(self._sum(self.site.enter(x))))
        return y + self.linear.bias if "bias" in self.linear else y

    def _sum(self, x: mx.array) -> mx.array:
        z = (self._dropped(x) @ self.lora_a) @ self.lora_b
        return product(self.linear, x) + (self.scale * z).astype(x.dtype)

    def _scaled(self, y: mx.array) -> mx.array:
        return y

    def _dropped(self, x: mx.array) -> mx.array:
        if not (self._rate and self._dropout.active):
            return x
        keys = self._dropout.of_tokens(x.shape[:-1], self.site.name)
        return drop(x, keys, self._salt, self._features(), self._rate)


class DoraLinear(LoraLinear):
    """The same, with each row of W + scale B A scaled to the learned length `m` (outputs,) float32.

    As in mlx-lm the length that is divided by counts as constant in the backward pass.
    """

    def __init__(
        self, linear: nn.Module, site: Site, settings: AdapterSettings, dropout: DropoutContext, seed: int
    ) -> None:
        super().__init__(linear, site, settings, dropout, seed)
        self.m = row_lengths(linear) if site.lengths is None else site.lengths

    def pieces(self) -> dict[str, Piece]:
        return super().pieces() | {"m": self.site.of_outputs(self.site.outputs, axis=0)}

    def _scaled(self, y: mx.array) -> mx.array:
        adapted = plain_weight(self.linear) + (self.scale * self.lora_b.T) @ self.lora_a.T
        lengths = mx.sqrt(self.site.join(mx.square(mx.stop_gradient(adapted)).sum(axis=1)))
        return (self.m / lengths).astype(y.dtype) * y


class LoraSwitch(Adapter):
    """LoRA for each expert of a switch layer: `lora_a` (experts, rank, inputs), `lora_b` (experts, outputs, rank)."""

    def __init__(
        self, linear: nn.Module, site: Site, settings: AdapterSettings, dropout: DropoutContext, seed: int
    ) -> None:
        super().__init__(linear, site, settings, dropout)
        self._experts, self._rank = linear.weight.shape[0], settings.rank
        self.lora_a = initial_a(site, seed, self.pieces()["lora_a"])
        self.lora_b = mx.zeros((self._experts, dimensions(linear)[1], settings.rank))

    def pieces(self) -> dict[str, Piece]:
        return {
            "lora_a": self.site.of_inputs(self._experts, self._rank, self.site.inputs, axis=2),
            "lora_b": self.site.of_outputs(self._experts, self.site.outputs, self._rank, axis=1),
        }

    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        y: mx.array = self.linear(x, indices, sorted_indices=sorted_indices)
        if self.off:
            return y
        z = self._dropped(x, indices, sorted_indices)
        for factor in (self.lora_a, self.lora_b):
            z = mx.gather_mm(z, factor.swapaxes(-1, -2), rhs_indices=indices, sorted_indices=sorted_indices)
        return y + (self.scale * z).astype(x.dtype)

    def _dropped(self, x: mx.array, indices: mx.array, sorted_indices: bool) -> mx.array:
        if not (self._rate and self._dropout.active):
            return x
        keys = self._dropout.of_experts(indices, self.site.name, sorted_indices=sorted_indices)
        return drop(x, keys[..., None], self._salt, self._features(), self._rate)


def product(linear: nn.Module, x: mx.array) -> mx.array:
    """W x, without bias and without other ranks."""
    if not _quantised(linear):
        return x @ linear.weight.T  # type: ignore[no-any-return]
    return mx.quantized_matmul(
        x,
        linear.weight,
        scales=linear.scales,
        biases=linear.get("biases"),
        transpose=True,
        group_size=linear.group_size,
        bits=linear.bits,
        mode=linear.mode,
    )


def plain_weight(linear: nn.Module) -> mx.array:
    """(outputs, inputs), dequantised where need be."""
    if not _quantised(linear):
        weight: mx.array = linear.weight
        return weight
    return mx.dequantize(
        linear.weight,
        linear.scales,
        linear.get("biases"),
        group_size=linear.group_size,
        bits=linear.bits,
        mode=linear.mode,
    )


def row_lengths(linear: nn.Module) -> mx.array:
    """Euclidean length of each row of the weight, (outputs,) float32."""
    return mx.linalg.norm(plain_weight(linear).astype(mx.float32), axis=1)


def initial_a(site: Site, seed: int, piece: Piece) -> mx.array:
    """Uniform within 1 / sqrt(inputs) as mlx-lm's, float32, a function of the seed and the parameter's name only."""
    digest = blake2b(f"{seed}/{site.name}.lora_a".encode(), digest_size=8).digest()
    key = mx.array([int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")], dtype=mx.uint32)
    bound = 1 / math.sqrt(site.inputs)
    return cut(mx.random.uniform(low=-bound, high=bound, shape=piece.whole, key=key), piece)


def _piece(whole: tuple[int, ...], axis: int, ranges: Ranges) -> Piece:
    return Piece(whole=whole) if ranges == ((0, whole[axis]),) else Piece(whole=whole, axis=axis, ranges=ranges)


def _quantised(linear: nn.Module) -> bool:
    return "scales" in linear


LINEAR = (nn.Linear, nn.QuantizedLinear)
SWITCH = (SwitchLinear, QuantizedSwitchLinear)
