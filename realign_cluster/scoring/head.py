"""A language model in two parts: the body that turns tokens into hidden states, and the head that turns those into
logits.

mlx-lm's models compute logits at every position. Here a model's own forward pass is run with its body replaced by one
that returns given hidden states: whatever the architecture does after its body (tied embeddings, scaling, soft caps)
happens, at the chosen positions only. Whether that is right for a model is checked on it when it is loaded; otherwise
full logits are computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

from realign_cluster.scoring.cpu_kernels import cpu_kernels

BODY_NAMES = ("model", "transformer", "backbone")


class SplitModel:
    """`hidden(tokens, cache)` -> (batch, length, width); `logits(hidden)` (n, width) -> (n, vocabulary) in the
    model's dtype.

    Where the model cannot be split, `hidden` gives logits already and `logits` passes them on.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._outer, self._body_name = _find_body(model)
        self.selective = self._body_name != "" and self._agrees()

    def make_cache(self) -> list[Any]:
        return list(make_prompt_cache(self.model))

    def kernels(self) -> AbstractContextManager[None]:
        """What runs it faster on a CPU, in force within the block."""
        return cpu_kernels(self.model)

    def hidden(self, tokens: mx.array, cache: Sequence[Any] | None = None) -> mx.array:
        model = getattr(self._outer, self._body_name) if self.selective else self.model
        result: mx.array = model(tokens, cache=cache)
        return result

    def each(self, batches: Iterable[mx.array]) -> Iterator[mx.array]:
        """`hidden` of one batch after the other, without a cache."""
        return (self.hidden(tokens) for tokens in batches)

    def kept(self, cache: Sequence[Any]) -> list[Any]:
        """What the cache holds after `hidden`, and is yet to be evaluated."""
        return [layer.state for layer in cache]

    def logits(self, hidden: mx.array) -> mx.array:
        return self._head(hidden[None]).squeeze(0) if self.selective else hidden  # [0] would copy

    def _head(self, hidden: mx.array) -> mx.array:
        stand_in = _HeadOnly(self._outer, self._body_name, hidden)
        tokens = mx.zeros(hidden.shape[:2], dtype=mx.int32)
        result: mx.array = type(self._outer).__call__(stand_in, tokens)
        return result

    def _agrees(self) -> bool:
        """Whether body and head, run apart, give the model's own logits on a short input."""
        tokens = mx.array([[1, 2, 3, 1, 0, 2, 3]])
        try:
            whole = self.model(tokens)
            body = getattr(self._outer, self._body_name)(tokens, cache=None)
            if body.ndim != 3 or body.shape[:2] != tokens.shape:
                return False
            apart = self._head(mx.take(body[0], mx.array([0, 2, 6]), axis=0)[None])[0]
            expected = mx.take(whole[0], mx.array([0, 2, 6]), axis=0)
            if apart.shape != expected.shape:
                return False
            bound = 1e-4 if whole.dtype == mx.float32 else 0.05
            difference = np.abs(np.array((apart - expected).astype(mx.float32))).max()
            scale = np.abs(np.array(expected.astype(mx.float32))).max()
            return bool(difference <= bound * max(1.0, float(scale)))
        except (TypeError, ValueError, AttributeError, RuntimeError, IndexError, KeyError):
            return False


class _HeadOnly:
    """Stands in for the model while its head runs: the body gives the hidden states it was made with."""

    def __init__(self, model: nn.Module, body_name: str, hidden: mx.array) -> None:
        self._model = model
        self._body_name = body_name
        self._body = _Given(getattr(model, body_name), hidden)

    def __getattr__(self, name: str) -> Any:
        return self._body if name == self._body_name else getattr(self._model, name)


class _Given:
    def __init__(self, body: nn.Module, hidden: mx.array) -> None:
        self._body = body
        self._hidden = hidden

    def __call__(self, *_: Any, **__: Any) -> mx.array:
        return self._hidden

    def __getattr__(self, name: str) -> Any:
        return getattr(self._body, name)


def _find_body(model: nn.Module) -> tuple[nn.Module, str]:
    """The module whose child is the body, and that child's name ("" if unknown). Multimodal wrappers hold a language
    model inside.
    """
    outer = model
    while isinstance(inner := getattr(outer, "language_model", None), nn.Module):
        outer = inner
    for name in BODY_NAMES:
        if isinstance(getattr(outer, name, None), nn.Module):
            return outer, name
    return model, ""
