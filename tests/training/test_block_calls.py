from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.gpt2 import Model, ModelArgs

from realign_cluster.domain.errors import UsageError
from realign_cluster.training.parallel.block_calls import Blocks, watch
from tests.training.tensor_ranks import build

TOKENS = mx.array([[3, 1, 4, 1, 5]])


class Block(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def __call__(self, hidden: mx.array, side: Any = None) -> mx.array:
        return hidden + self.linear(hidden)


class Chain(nn.Module):  # type: ignore[misc]
    """Two blocks between an embedding and a norm; what is odd about it is in `between` and `side`."""

    def __init__(self, odd: str = "") -> None:
        super().__init__()
        self.embedding = nn.Embedding(16, 8)
        self.layers = [Block(), Block()]
        self.norm = nn.RMSNorm(8)
        self.scale = mx.array(2.0)
        self.odd = odd
        if odd == "shared":
            self.layers[1].linear = self.layers[0].linear

    def __call__(self, tokens: mx.array) -> mx.array:
        first = hidden = self.embedding(tokens) * self.scale
        for block in self.layers if self.odd != "backwards" else reversed(self.layers):
            if self.odd == "between":
                hidden = self.norm(hidden)
            if self.odd == "skips":
                hidden = hidden + first
            if self.odd == "weights":
                side: Any = self.scale
            else:
                side = {"states": first, "positions": mx.arange(tokens.shape[1])}.get(self.odd)
            hidden = block(hidden, side)
        return self.embedding.as_linear(self.norm(hidden))


@pytest.mark.parametrize("odd", ["", "positions"])
def test_parameters_are_found_where_they_are_read(odd: str) -> None:
    model = Chain(odd)
    values = {name: np.array(value) for name, value in tree_flatten(model.parameters())}
    logits = np.array(model(TOKENS))
    reads = watch(model, Blocks(model))
    assert reads.before == {"embedding.weight", "scale"}
    assert reads.after == {"embedding.weight", "norm.weight"}
    assert reads.blocks[1] == {"layers.1.linear.weight", "layers.1.linear.bias"}
    for name, value in tree_flatten(model.parameters()):
        assert np.array_equal(value, values[name]), name
    assert np.array_equal(model(TOKENS), logits)


def test_position_embeddings_are_read_before_the_blocks() -> None:
    model = Model(
        ModelArgs(
            model_type="gpt2",
            n_ctx=64,
            n_embd=32,
            n_head=2,
            n_layer=2,
            n_positions=64,
            layer_norm_epsilon=1e-5,
            vocab_size=128,
        )
    )
    reads = watch(model, Blocks(model))
    assert reads.before == {"model.wte.weight", "model.wpe.weight"}
    assert reads.after == {"model.wte.weight", "model.ln_f.weight", "model.ln_f.bias"}


def test_quantised_ends_are_read_with_their_scales() -> None:
    model = build("llama", 4)
    reads = watch(model, Blocks(model))
    assert reads.before == {f"model.embed_tokens.{part}" for part in ("weight", "scales", "biases")}
    assert reads.after == {"model.norm.weight"} | {f"lm_head.{part}" for part in ("weight", "scales", "biases")}


@pytest.mark.parametrize(
    ("odd", "why"),
    [
        ("between", "block 1 is not given what the one before it gives"),
        ("skips", "block 1 is not given what the one before it gives"),
        ("backwards", "block 1 is not given what the one before it gives"),
        ("weights", "block 0 takes more than hidden states"),
        ("states", "block 0 takes more than hidden states"),
        ("shared", r"layers.1.linear.weight is also layers.0.linear.weight"),
    ],
)
def test_what_is_no_chain_is_refused(odd: str, why: str) -> None:
    model = Chain(odd)
    with pytest.raises(UsageError, match=why):
        watch(model, Blocks(model))


def test_calls_go_to_who_has_the_turn_and_back_to_the_blocks() -> None:
    model = Chain()
    expected = np.array(model(TOKENS))
    blocks = Blocks(model)
    assert np.array_equal(model(TOKENS), expected)
    seen = []

    def turn(index: int, plain: Any, hidden: mx.array, side: Any) -> mx.array:
        seen.append(index)
        result: mx.array = plain(hidden, side) if index == 0 else hidden
        return result

    with blocks.turn(turn):
        changed = np.array(model(TOKENS))
    assert seen == [0, 1]
    assert not np.array_equal(changed, expected)
    assert np.array_equal(model(TOKENS), expected)
