from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from realign_cluster.domain.errors import UsageError
from realign_cluster.training.forward import Forward
from realign_cluster.training.parallel.stages import Stage
from tests.fixtures import models
from tests.fixtures.models import make_model
from tests.training.pipeline_ranks import (
    BLOCKS,
    CONFIGS,
    Case,
    answer,
    build,
    micro_batch,
    peaks,
)
from tests.training.rank_processes import run_ranks

THREE = [(0, 1), (1, 3), (3, BLOCKS)]
TWO_CASES: list[Case] = [
    ("llama", "lora", None, [(0, 2), (2, 5)], -1, False),
    ("llama", "full", None, [(0, 1), (1, 5)], -1, True),
    ("llama-tied", "full", None, [(0, 2), (2, 5)], -1, False),
    ("qwen2", "lora", 4, [(0, 1), (1, 5)], -1, True),
    ("qwen3", "dora", 4, [(0, 4), (4, 5)], -1, False),
    ("qwen3", "lora", 16, [(0, 2), (2, 5)], -1, False),
    ("gemma3_text", "full", None, [(0, 2), (2, 5)], -1, False),
    ("mixtral", "lora", 4, [(0, 2), (2, 5)], 2, False),  # the first stage has nothing to train
]
THREE_CASES: list[Case] = [
    ("llama-tied", "full", None, [(0, 1), (1, 3), (3, 5)], -1, False),
    ("llama-windows", "dora", None, [(0, 1), (1, 4), (4, 5)], 3, True),
]


@pytest.fixture(scope="module")
def said_by_two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_ranks(answer, 2, tmp_path_factory.mktemp("two"), cases=TWO_CASES)


@pytest.fixture(scope="module")
def said_by_three(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_ranks(answer, 3, tmp_path_factory.mktemp("three"), cases=THREE_CASES)


def assert_close(found: Any, expected: Any, relative: float, what: str) -> None:
    found, expected = np.array(found, dtype=np.float64), np.array(expected, dtype=np.float64)
    assert found.shape == expected.shape, what
    difference, size = np.linalg.norm(found - expected), np.linalg.norm(expected)
    assert difference <= relative * size, f"{what}: {difference} of {size}"


def compare(said: list[dict[str, Any]], number: int, case: Case) -> None:
    """Every rank says the same of the whole; each parameter's gradient is on one rank."""
    whole = f"{number} whole "
    expected = {key.removeprefix(whole): found[key] for found in said for key in found if key.startswith(whole)}
    assert any(key.startswith("of ") for key in expected)
    for key, value in expected.items():
        holders = [found[f"{number} stage {key}"] for found in said if f"{number} stage {key}" in found]
        assert len(holders) == (1 if key.startswith(("of ", "trained ")) else len(said)), key
        for found in holders:
            assert_close(found, value, 1e-4 if "train" in key else 1e-5, f"{case} {key}")
            assert np.array_equal(found, holders[0]), key
    stages = {key.removeprefix(f"{number} stage ") for found in said for key in found}
    assert {key for key in stages if not key[0].isdigit() and not key.startswith("large ")} == set(expected)


@pytest.mark.parametrize("number", range(len(TWO_CASES)), ids=lambda number: str(TWO_CASES[number]))
def test_two_ranks_answer_as_one_process_does(said_by_two: list[dict[str, Any]], number: int) -> None:
    compare(said_by_two, number, TWO_CASES[number])


@pytest.mark.parametrize("number", range(len(THREE_CASES)), ids=lambda number: str(THREE_CASES[number]))
def test_three_ranks_answer_as_one_process_does(said_by_three: list[dict[str, Any]], number: int) -> None:
    compare(said_by_three, number, THREE_CASES[number])


@pytest.mark.parametrize("name", CONFIGS)
def test_stage_after_stage_is_the_models_own_forward(name: str) -> None:
    """Masks, windows and scalings too: to the bit."""
    for batch in (micro_batch(1, 2, 40), micro_batch(2, 2, 40, packed=True)):
        whole = Forward(build(name)).log_probabilities(batch)
        passing: mx.array | None = None
        names: list[str] = []
        for rank in range(len(THREE)):
            stage = Stage(build(name), THREE, rank)
            names += [name for name, _ in tree_flatten(stage.model.parameters())]
            passing = stage.run(batch, passing)
        assert mx.array_equal(passing, whole)
        everything = [name for name, _ in tree_flatten(build(name).parameters())]
        tied = [] if "lm_head" in build(name) else ["model.embed_tokens.weight"]
        assert sorted(names) == sorted(everything + tied)


def test_transfers_larger_than_any_buffer_do_not_lock(
    said_by_two: list[dict[str, Any]], said_by_three: list[dict[str, Any]]
) -> None:
    for said in (said_by_two, said_by_three):
        product = np.prod([rank + 2.0 for rank in range(len(said))])
        assert said[-1]["large seen"].tolist() == [product] * 3
        for rank, found in enumerate(said):
            assert float(found["large gradient"]) == pytest.approx(3 * product / (rank + 2))


def test_a_rank_needs_less_memory_than_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    larger = CONFIGS["llama"] | {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 10}
    monkeypatch.setitem(models.CONFIGS, "larger", larger)
    folder = make_model(tmp_path / "model", "larger")
    layers = [(0, 4), (4, 10)]
    said = run_ranks(peaks, 2, tmp_path / "ranks", model_folder=str(folder), layers=layers)
    for found, (start, end) in zip(said, layers, strict=True):
        for kind in ("lora", "full"):
            assert found[f"{kind} stage loaded"] < ((end - start) / 10 + 0.05) * found[f"{kind} whole loaded"]
            assert found[f"{kind} stage stepped"] < ((end - start) / 10 + 0.2) * found[f"{kind} whole stepped"]


class Block(nn.Module):  # type: ignore[misc]
    def __init__(self, gives_two: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self._gives_two = gives_two

    def __call__(self, hidden: mx.array, more: mx.array | None = None, cache: Any = None) -> Any:
        result = hidden + self.linear(hidden)
        return (result, result) if self._gives_two else result


class Body(nn.Module):  # type: ignore[misc]
    def __init__(self, walk: Callable[[Any, mx.array], mx.array], **options: Any) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(16, 8)
        self.layers = [Block(**options) for _ in range(3)]
        self.norm = nn.RMSNorm(8)
        self._walk = walk

    def __call__(self, tokens: mx.array, cache: Any = None) -> mx.array:
        return self.norm(self._walk(self, self.embed_tokens(tokens)))


class Odd(nn.Module):  # type: ignore[misc]
    model_type = "odd"

    def __init__(self, walk: Callable[[Any, mx.array], mx.array], **options: Any) -> None:
        super().__init__()
        self.model = Body(walk, **options)
        self.lm_head = nn.Linear(8, 16)


def in_order(body: Any, hidden: mx.array) -> mx.array:
    for block in body.layers:
        hidden = block(hidden)
    return hidden


def with_a_sum_between(body: Any, hidden: mx.array) -> mx.array:
    for block in body.layers:
        hidden = 0.5 * block(hidden)
    return hidden


def with_the_first_everywhere(body: Any, hidden: mx.array) -> mx.array:
    first = hidden
    for block in body.layers:
        hidden = block(hidden, more=first)
    return hidden


def twice(body: Any, hidden: mx.array) -> mx.array:
    return in_order(body, in_order(body, hidden))


def with_two_results(body: Any, hidden: mx.array) -> mx.array:
    for block in body.layers:
        hidden, _ = block(hidden)
    return hidden


@pytest.mark.parametrize(
    ("walk", "options", "why"),
    [
        (with_a_sum_between, {}, "something is computed between its blocks"),
        (with_the_first_everywhere, {}, "its blocks take more from earlier ones than hidden states"),
        (twice, {}, "its blocks are not run once each in their order"),
        (with_two_results, {"gives_two": True}, "a block gives something else than hidden states"),
    ],
)
def test_blocks_that_are_no_chain_are_refused(walk: Any, options: dict[str, Any], why: str) -> None:
    model = Odd(walk, **options)
    before = {name: id(value) for name, value in tree_flatten(model.parameters())}
    with pytest.raises(UsageError, match=f"models of type odd cannot be cut.*{why}"):
        Stage(model, [(0, 1), (1, 3)], 0)
    assert {name: id(value) for name, value in tree_flatten(model.parameters())} == before


def test_weights_without_a_place_are_refused() -> None:
    model = Odd(in_order)
    model.model.position = mx.zeros((4, 8))
    with pytest.raises(UsageError, match=r"no stage is known for model\.position"):
        Stage(model, [(0, 1), (1, 3)], 0)
    with pytest.raises(UsageError, match=r"no model\.embed_tokens"):
        Stage(nn.Linear(2, 2), [(0, 1)], 0)


@pytest.mark.parametrize("layers", [[(0, 2)], [(0, 2), (3, 5)], [(0, 5), (5, 5)], [(1, 3), (3, 5)], [(0, 3), (2, 5)]])
def test_layers_have_to_be_all_blocks_in_order(layers: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="not consecutive ranges of 5 blocks"):
        Stage(build("llama"), layers, 0)
