from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from realign_cluster.domain.training import FineTune
from tests.fixtures import models
from tests.fixtures.models import TINY_MODEL, make_model
from tests.training.rank_processes import run_ranks
from tests.training.sharded_ranks import (
    PEAKS,
    Shares,
    answers,
    awkward_model,
    batches_seen,
    compare,
    micro_batches,
    move,
    open_model,
    peaks,
    spread,
    strategy_of,
    train,
)


def case(source: str, bits: int | None, kind: FineTune, method: str = "sft", steps: int = 0) -> dict[str, Any]:
    vocabulary = 2048 if source == str(TINY_MODEL) else 256
    return {"source": source, "bits": bits, "kind": kind, "method": method, "steps": steps, "vocabulary": vocabulary}


TINY = [
    case(str(TINY_MODEL), None, "lora", "sft"),
    case(str(TINY_MODEL), None, "full", "orpo", steps=1),
    case(str(TINY_MODEL), 4, "lora", "dpo"),
    case(str(TINY_MODEL), 4, "dora"),
]
MADE = [
    case("llama", None, "full"),
    case("qwen3_moe", None, "lora"),
    case("ministral3", 4, "lora"),
]


def assert_close(found: Any, expected: Any, relative: float, what: str) -> None:
    found, expected = np.array(found, dtype=np.float64), np.array(expected, dtype=np.float64)
    assert found.shape == expected.shape, what
    difference, size = np.linalg.norm(found - expected), np.linalg.norm(expected)
    assert difference <= relative * size, f"{what}: {difference} of {size}"


@pytest.mark.parametrize(
    ("cases", "shares"),
    [
        (TINY[::3], [[0, 3, 2], [1]]),
        (TINY[1:3], [[1, 2], [], [3, 0]]),
        (MADE, [[], [0, 1, 2, 3]]),
    ],
    ids=["tiny-2", "tiny-3", "made-2"],
)
def test_ranks_answer_as_one_does(tmp_path: Path, cases: list[dict[str, Any]], shares: Shares) -> None:
    """Gradients of all parameters, norm, losses, base log-probabilities, trained parameters; dropout, packed rows."""
    ranks = run_ranks(compare, len(shares), tmp_path, cases=cases, shares=shares)
    for number, case in enumerate(cases):
        model = open_model(case["source"], case["bits"])
        strategy = strategy_of(model, case["kind"], None)
        move(strategy, case["kind"], None)
        expected = dict(answers(strategy, range(4), case["method"], case["vocabulary"]))
        squares = [np.square(np.array(value, np.float64)).sum() for key, value in expected.items() if key[:3] == "of "]
        expected["norm"] = np.array(sum(squares))
        expected["logits"] = model(micro_batches(case["vocabulary"])[0].tokens)
        for key, value in expected.items():
            holders = [rank for rank, own in enumerate(shares) if not key.startswith("base") or int(key[5:]) in own]
            for rank in holders:
                assert_close(ranks[rank][f"{number} {key}"], value, 1e-5, f"{case} {key}")
        if case["steps"]:
            train(strategy, range(4), case["method"], case["vocabulary"], case["steps"])
            for name, value in strategy.parameters().items():
                assert_close(ranks[0][f"{number} trained {name}"], value, 1e-4, f"{case} trained {name}")
    everywhere = [key for key in ranks[0] if " base " not in key]
    assert [key for key in everywhere if not np.array_equal(ranks[0][key], ranks[-1][key])] == []


def test_one_rank_alone_answers_as_the_whole_model_does() -> None:
    """Of a group of one, MLX has sum_scatter: the way that the ring cannot go."""
    expected = dict(answers(strategy_of(open_model("llama", None), "full", None), range(4), "ipo", 256))
    alone = strategy_of(open_model("llama", None), "full", mx.distributed.init())
    for key, value in answers(alone, range(4), "ipo", 256):
        assert_close(value, expected[key], 1e-5, key)


def test_losses_are_of_the_micro_batches_that_were_given(tmp_path: Path) -> None:
    """What a rank runs to keep step with the others is nothing that an objective hears of."""
    assert [int(found["seen"][0]) for found in run_ranks(batches_seen, 2, tmp_path)] == [3, 3]


def test_a_rank_needs_less_memory_than_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    larger = models.COMMON | {"model_type": "llama", "hidden_size": 128, "intermediate_size": 512}
    monkeypatch.setitem(models.CONFIGS, "larger", larger | {"num_hidden_layers": 16, "head_dim": 32})
    folder = make_model(tmp_path / "model", "larger")
    for found in run_ranks(peaks, 2, tmp_path / "ranks", source=str(folder)):
        for kind in ("lora", "full"):
            whole, shard = ({of: int(found[f"{kind} {held} {of}"]) for of in PEAKS} for held in ("whole", "shard"))
            print(kind, {of: (whole[of] >> 10, shard[of] >> 10) for of in PEAKS}, "KiB whole and sharded")
            assert shard["kept"] < 0.55 * whole["kept"]
            assert shard["loaded"] < 0.75 * whole["loaded"]
            assert shard["stepped"] < 0.75 * whole["stepped"]


def test_parameters_of_any_shape_and_type_come_back(tmp_path: Path) -> None:
    expected = dict(tree_flatten(awkward_model().parameters()))
    ranks = run_ranks(spread, 3, tmp_path)
    for found in ranks:
        for name, value in expected.items():
            assert np.array_equal(found[f"whole {name}"], np.array(value.astype(mx.float32))), name
            if value.dtype == mx.float32:
                assert_close(found[f"sum {name}"], 6 * value, 1e-7, name)
    for name, value in expected.items():
        rows = [int(found[f"rows {name}"]) for found in ranks]
        if value.ndim and value.shape[0] >= 3:
            assert sum(rows) == value.shape[0]
            assert max(rows) - min(rows) <= 1
