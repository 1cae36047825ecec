"""How close a mixture's router came to another choice of experts: where the margin is tiny, rounding decides the score.

Watches the linear layers named gate or router while something is scored. Must not change what they compute.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

NAMES = ("gate", "router")


class RouterMargin:
    """`smallest` is the least difference, over tokens and layers, between the probabilities of the last expert chosen
    and the first one left out; None while no router was seen.
    """

    def __init__(self) -> None:
        self.smallest: float | None = None

    def see(self, logits: mx.array, chosen: int) -> None:
        probabilities = mx.softmax(logits.astype(mx.float32), axis=-1)
        ranked = np.sort(np.array(probabilities), axis=-1)[..., ::-1]
        margin = float((ranked[..., chosen - 1] - ranked[..., chosen]).min())
        self.smallest = margin if self.smallest is None else min(self.smallest, margin)


@contextmanager
def watch_routers(model: nn.Module) -> Iterator[RouterMargin]:
    """Every router of `model` until the end of the block. Padding counts too, so score rows alone."""
    margin = RouterMargin()
    watched: list[tuple[nn.Module, str, nn.Module]] = []
    for _, module in model.named_modules():
        counts = (getattr(module, name, None) for name in ("top_k", "num_experts_per_tok"))
        chosen = next((count for count in counts if isinstance(count, int)), None)
        for name in NAMES:
            gate = getattr(module, name, None)
            if chosen is not None and isinstance(gate, nn.Linear | nn.QuantizedLinear):
                watched.append((module, name, gate))
                setattr(module, name, _Watched(gate, chosen, margin))
    try:
        yield margin
    finally:
        for module, name, gate in watched:
            setattr(module, name, gate)


class _Watched:
    def __init__(self, gate: Any, chosen: int, margin: RouterMargin) -> None:
        self._gate = gate
        self._chosen = chosen
        self._margin = margin

    def __call__(self, hidden: mx.array) -> mx.array:
        logits: mx.array = self._gate(hidden)
        if logits.shape[-1] > self._chosen:
            self._margin.see(logits, self._chosen)
        return logits
