"""The CPU kernels give what MLX's own operations give."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models import activations, base, llama

from realign_cluster.scoring import cpu_kernels
from realign_cluster.scoring.cpu_kernels import attention, swiglu

CASES = [
    # batch, heads, key heads, queries, keys
    (1, 2, 2, 5, 5),
    (2, 4, 2, 300, 300),
    (3, 4, 1, 7, 40),
    (1, 2, 1, 1, 33),
    (1, 4, 4, 150, 400),
]


def draw(*shape: int) -> mx.array:
    return mx.random.normal(shape)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["none", "causal", "bools", "addends", "per row"])
def test_attention(case: tuple[int, ...], kind: str) -> None:
    batch, heads, key_heads, n, m = case
    mx.random.seed(n)
    queries, keys, values = draw(batch, heads, n, 16), draw(batch, key_heads, m, 16), draw(batch, key_heads, m, 8)
    causal = mx.arange(m - n, m)[:, None] >= mx.arange(m)[None]
    itself = mx.arange(m)[None] == mx.arange(m - n, m)[:, None]
    begins_at = mx.arange(batch)[:, None, None, None] * 3
    masks: dict[str, mx.array | str | None] = {
        "none": None,
        "causal": "causal",
        "bools": causal,
        "addends": mx.where(causal, 0.0, -np.inf),
        "per row": (causal & (mx.arange(m) >= begins_at)) | itself,
    }
    mask = masks[kind]
    found = attention(queries, keys, values, None, 0.25, mask)
    right = base.scaled_dot_product_attention(queries, keys, values, cache=None, scale=0.25, mask=mask)
    assert found.shape == right.shape
    assert np.abs(np.array(found - right)).max() < 1e-5


def test_swiglu() -> None:
    gate, x = draw(3, 200, 40) * 20, draw(3, 200, 40)
    right = activations.swiglu(gate, x)
    mx.eval(right)
    assert np.abs(np.array(swiglu(gate + 0.0, x) - right)).max() < 1e-4


def test_other_types_go_to_mlx() -> None:
    queries = draw(1, 2, 6, 16).astype(mx.float16)
    found = attention(queries, queries, queries, None, 0.25, "causal")
    assert found.dtype == mx.float16
    assert swiglu(queries, queries).dtype == mx.float16


def test_in_force_only_inside() -> None:
    model = llama.Model(
        llama.ModelArgs(
            model_type="llama",
            hidden_size=16,
            num_hidden_layers=1,
            intermediate_size=16,
            num_attention_heads=2,
            rms_norm_eps=1e-5,
            vocab_size=32,
        )
    )
    assert cpu_kernels.takes_attention_kernel(model)
    with cpu_kernels.cpu_kernels(model):
        assert vars(llama)["scaled_dot_product_attention"] is attention
    assert vars(llama)["scaled_dot_product_attention"] is base.scaled_dot_product_attention
    assert vars(llama)["swiglu"] is activations.swiglu
