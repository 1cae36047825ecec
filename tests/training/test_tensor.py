from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.nn.layers import distributed

from realign_cluster.domain.divisibility import TENSOR_MODEL_TYPES
from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.training import FineTune
from realign_cluster.training.parallel.sharded_model import ShardedModel, split_ranges
from tests.fixtures import models
from tests.fixtures.models import make_model
from tests.training.rank_processes import run_ranks
from tests.training.tensor_ranks import (
    CONFIGS,
    SETTINGS,
    answer,
    answers,
    build,
    peaks,
    prefixed,
    train,
    train_three,
    whole_strategy,
)

Case = tuple[str, FineTune, int | None]
DENSE = ("llama", "llama-tied", "mistral", "qwen2", "qwen3", "ministral3")
MIXTURES = ("qwen3_moe", "exaone_moe", "glm4_moe")
CASES: list[Case] = [
    *((name, "lora", None) for name in CONFIGS),
    *((name, "full", None) for name in DENSE + MIXTURES),
    *((name, "dora", None) for name in DENSE),
    *((name, "lora", 4) for name in ("llama", "llama-tied", "qwen3_moe", "gpt_oss")),
    *((name, "dora", 4) for name in ("llama", "llama-tied")),
]
TRAINED: list[Case] = [("qwen3", "lora", None), ("qwen3", "dora", 4), ("qwen3", "full", None)]


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_ranks(answer, 2, tmp_path_factory.mktemp("answered"), cases=CASES)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_ranks(train_three, 2, tmp_path_factory.mktemp("trained"), cases=TRAINED)


def assert_close(found: Any, expected: Any, relative: float, what: str) -> None:
    found, expected = np.array(found, dtype=np.float64), np.array(expected, dtype=np.float64)
    assert found.shape == expected.shape, what
    difference, size = np.linalg.norm(found - expected), np.linalg.norm(expected)
    assert difference <= relative * size, f"{what}: {difference} of {size}"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_two_ranks_answer_as_one_does(answered: list[dict[str, Any]], case: Case) -> None:
    """Logits, losses, base log-probabilities, gradients and their norm, with dropout."""
    strategy, model = whole_strategy(*case)
    said, gradients = answers(strategy, model)
    expected = prefixed(case, said | {f"of {name}": value for name, value in gradients.items()})

    for found in answered:
        assert {key for key in found if key.startswith(" ".join(map(str, [*case, ""])))} == set(expected)
    for key, value in expected.items():
        assert_close(answered[0][key], value, 1e-5, key)
        assert np.array_equal(answered[0][key], answered[1][key]), key


@pytest.mark.parametrize("case", TRAINED, ids=str)
def test_three_steps_train_the_same_parameters(trained: list[dict[str, Any]], case: Case) -> None:
    strategy, _ = whole_strategy(*case)
    before = strategy.parameters()
    train(strategy, 3)
    for name, value in strategy.parameters().items():
        (key,) = prefixed(case, {name: value})
        assert_close(trained[0][key], value, 1e-5, key)
        assert not np.allclose(trained[0][key], before[name], rtol=1e-3), key


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_rank_needs_less_memory_than_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: FineTune
) -> None:
    widths = {"hidden_size": 256, "intermediate_size": 1024, "head_dim": 64, "num_hidden_layers": 8}
    monkeypatch.setitem(models.CONFIGS, "larger", CONFIGS["llama"] | widths)
    folder = make_model(tmp_path / "model", "larger")
    for found in run_ranks(peaks, 2, tmp_path / "ranks", model_folder=str(folder), kind=kind):
        assert found["shard loaded"] < 0.7 * found["whole loaded"]
        assert found["shard stepped"] < 0.65 * found["whole stepped"]


def test_all_types_that_may_be_planned_are_tested() -> None:
    same_as_llama = {"iquestcoder", "xverse"}  # mlx-lm runs them, like mistral, with llama's code
    assert {config["model_type"] for config in CONFIGS.values()} == TENSOR_MODEL_TYPES - same_as_llama


@pytest.mark.parametrize("segments", [1, 3, [8, 12], [0.25, 0.5]])
@pytest.mark.parametrize(("rank", "ranks"), [(0, 2), (1, 2), (3, 4)])
def test_ranges_are_what_mlx_cuts(segments: Any, rank: int, ranks: int) -> None:
    class Place:
        def rank(self) -> int:
            return rank

        def size(self) -> int:
            return ranks

    rows = mx.arange(48)[:, None]
    layer = {"weight": mx.concatenate([rows, rows], axis=1)}
    kept = distributed._shard(layer, distributed._all_to_sharded(segments), Place())["weight"][:, 0]
    ranges = split_ranges(48, segments, rank, ranks)
    assert kept.tolist() == [row for start, end in ranges for row in range(start, end)]


def test_types_without_verified_gradients_are_refused() -> None:
    model = build("llama", None)
    model.model_type = "deepseek_v3"
    with pytest.raises(UsageError, match="deepseek_v3 cannot be trained in shards"):
        ShardedModel(model, SETTINGS, "lora", 0, mx.distributed.init())


def test_full_training_of_arrays_cut_in_an_unknown_way_is_refused() -> None:
    class Halved(nn.Module):  # type: ignore[misc]
        model_type = "llama"

        def __init__(self) -> None:
            super().__init__()
            self.layers = [nn.RMSNorm(8)]

        def shard(self, group: mx.distributed.Group) -> None:
            self.layers[0].weight = self.layers[0].weight[:4]

    with pytest.raises(UsageError, match=r"layers\.0\.weight is cut"):
        ShardedModel(Halved(), SETTINGS, "full", 0, mx.distributed.init())
