"""Memory arithmetic against published sizes of real architectures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realign_cluster.domain.memory import (
    GIB,
    MemoryLimit,
    ModelFacts,
    NodeMemory,
    dtype_of,
    judge_fit,
    largest_batch,
    memory_limit,
    memory_need,
    model_facts,
    no_model,
    ways_to_fit,
    weights_text,
)

CONFIGS = Path(__file__).parent.parent / "fixtures" / "configs"


def config(name: str) -> dict[str, Any]:
    loaded = json.loads((CONFIGS / f"{name}.json").read_text())
    assert isinstance(loaded, dict)
    return loaded


def facts(name: str, weights_bytes: int = 0) -> ModelFacts:
    return model_facts(config(name), weights_bytes, name=name)


def mac(name: str, gibibytes: int) -> NodeMemory:
    limit = memory_limit(backend="metal", memory_bytes=gibibytes * GIB)
    return NodeMemory(name=name, backend="metal", memory_bytes=gibibytes * GIB, limit=limit)


@pytest.mark.parametrize(
    ("name", "total", "active_billions"),
    [
        ("llama-3.1-405b", 405_853_388_800, 403.8),
        ("llama-3.1-70b", 70_553_706_496, 69.5),
        ("mixtral-8x7b", 46_702_792_704, 12.75),
        ("qwen3-30b-a3b", 30_532_122_624, 3.04),
        ("deepseek-v3", 671_026_404_352, 36.6),  # published 671,026,419,200: the routing biases are not counted
    ],
)
def test_parameters_are_the_published_ones(name: str, total: int, active_billions: float) -> None:
    model = facts(name)
    assert model.parameters.total == total
    assert model.parameters.active / 1e9 == pytest.approx(active_billions, rel=0.005)
    assert model.weights_bytes == 2 * total


def test_cache_per_token_counts_grouped_heads_and_latents() -> None:
    assert facts("llama-3.1-70b").kv_bytes_per_token == 80 * 2 * 8 * 128 * 2
    assert facts("deepseek-v3").kv_bytes_per_token == 61 * (512 + 64) * 2


def test_405b_in_16_bits_does_not_fit_and_the_ways_out_are_named() -> None:
    model = facts("llama-3.1-405b")
    assert weights_text(model) == "405.9 billion parameters x 16 bits = 811.7 GB (756.0 GiB) in bfloat16"
    nodes = [mac("m4max", 128), mac("m3ultra", 512)]
    for node in nodes:
        fit = judge_fit(model, node.limit, longest_row_tokens=2048, backend="metal")
        assert not fit.fits
        assert fit.batch_tokens == 0
        assert "does not fit" in fit.text
    ways = ways_to_fit(model, nodes, longest_row_tokens=2048)
    four_bit = next(way for way in ways if way.startswith("4-bit"))
    assert "228.3 GB" in four_bit
    assert "fits m3ultra:" in four_bit
    assert any("more nodes: these hold 480.0 GiB together" in way and "1 more like m3ultra" in way for way in ways)


def test_a_raised_wired_limit_is_offered_where_it_would_do() -> None:
    model = facts("llama-3.1-405b", weights_bytes=431 * 10**9)  # 8-bit: 401 GiB, more than 384 and less than 504
    quantised = model_facts({**config("llama-3.1-405b"), "quantization": {"bits": 8}}, 431 * 10**9, name="405b-8bit")
    assert quantised.dtype == "8-bit"
    assert model.parameters.source != "its config.json"  # 431 GB in bfloat16 contradicts the config
    ways = ways_to_fit(quantised, [mac("m3ultra", 512)], longest_row_tokens=1024)
    assert any("iogpu.wired_limit_mb=516096" in way for way in ways)


def test_70b_fits_the_large_machine_only() -> None:
    model = facts("llama-3.1-70b")
    small, large = mac("m4max", 128), mac("m3ultra", 512)
    assert not judge_fit(model, small.limit, longest_row_tokens=2048, backend="metal").fits
    fit = judge_fit(model, large.limit, longest_row_tokens=2048, backend="metal")
    assert fit.fits
    assert fit.batch_tokens > 2048
    need = memory_need(model, fit.batch_tokens, backend="metal")
    assert need.total <= large.limit.bytes < memory_need(model, fit.batch_tokens + 1, backend="metal").total


def test_the_text_adds_up() -> None:
    need = memory_need(facts("llama-3.1-70b"), 4096)
    assert need.total == need.weights + need.kv_cache + need.activations + need.logits + need.process
    assert "KV cache 4096 tokens x 320.0 KiB = 1.2 GiB" in need.text()


def test_limits_name_their_source() -> None:
    assert memory_limit(backend="metal", memory_bytes=128 * GIB).bytes == 96 * GIB
    reported = memory_limit(backend="metal", memory_bytes=128 * GIB, working_set_bytes=107 * GIB)
    assert (reported.bytes, "recommended working set" in reported.source) == (107 * GIB, True)
    # a CPU node reports all of its memory as working set
    cpu = memory_limit(backend="cpu", memory_bytes=16 * GIB, working_set_bytes=16 * GIB, available_bytes=9 * GIB)
    assert cpu.bytes == 9 * GIB
    assert memory_limit(backend="cpu", memory_bytes=10 * GIB).bytes == 8 * GIB
    capped = memory_limit(backend="metal", memory_bytes=128 * GIB, hostfile_limit_bytes=40 * GIB)
    assert (capped.bytes, "hostfile" in capped.source) == (40 * GIB, True)
    assert memory_limit(backend="metal", memory_bytes=128 * GIB, hostfile_limit_bytes=400 * GIB).bytes == 96 * GIB


@pytest.mark.parametrize(
    ("extra", "dtype"),
    [
        ({"quantization": {"group_size": 64, "bits": 4}}, "4-bit"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, "4-bit"),
        ({"torch_dtype": "float32"}, "float32"),
        ({"torch_dtype": None, "dtype": "float16"}, "float16"),
        ({"torch_dtype": None, "text_config": {"torch_dtype": "float32"}}, "float32"),
        ({"torch_dtype": None}, "bfloat16"),
    ],
)
def test_dtype(extra: dict[str, Any], dtype: str) -> None:
    assert dtype_of({**config("llama-3.1-70b"), **extra}) == dtype


def test_a_config_of_another_family_is_planned_by_its_bytes() -> None:
    model = model_facts({"model_type": "mamba", "d_inner": 5120, "n_layer": 64}, 5_000_000_000, name="other")
    assert model.architecture is None
    assert model.parameters.total == 2_500_000_000
    assert "bytes at 16 bits" in model.parameters.source
    assert judge_fit(model, mac("m4max", 128).limit, longest_row_tokens=2048, backend="metal").fits


def test_a_multimodal_config_is_read_through_its_text_config() -> None:
    wrapped = {"model_type": "llava", "text_config": config("llama-3.1-70b")}
    assert model_facts(wrapped, 0, name="wrapped").parameters.total == 70_553_706_496


def test_no_model_needs_a_process_only() -> None:
    assert judge_fit(no_model(), MemoryLimit(bytes=GIB, source="test"), longest_row_tokens=1, backend="cpu").fits


@given(st.integers(1, 1 << 20), st.integers(1, 1 << 20), st.sampled_from(["metal", "cpu"]))
def test_need_grows_with_the_batch(one: int, other: int, backend: str) -> None:
    model = facts("qwen3-30b-a3b")
    small, large = sorted((one, other))
    assert memory_need(model, small, backend=backend).total <= memory_need(model, large, backend=backend).total


@given(st.integers(GIB, 700 * GIB))
def test_the_largest_batch_is_the_largest(limit_bytes: int) -> None:
    model = facts("mixtral-8x7b")
    limit = MemoryLimit(bytes=limit_bytes, source="test")
    batch = largest_batch(model, limit, backend="metal", ceiling=1 << 22)
    if batch:
        assert memory_need(model, batch).total <= limit_bytes
    if batch < 1 << 22:
        assert memory_need(model, batch + 1).total > limit_bytes
