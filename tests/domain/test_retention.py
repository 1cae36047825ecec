"""Retention: the minimum over benchmarks, paired, undefined where the baseline is at chance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.retention import BenchmarkPair, judge_benchmark, judge_retention, overall, retention


def pair(items: int, *, lost: float = 0.0, gained: float = 0.0, baseline: float = 0.7, seed: int = 0) -> BenchmarkPair:
    """Right before with probability `baseline`; of those a part is lost, of the others a part gained."""
    generator = np.random.default_rng(seed)
    before = generator.random(items) < baseline
    chance = generator.random(items)
    after = np.where(before, chance >= lost, chance < gained)
    return BenchmarkPair(
        benchmark="general",
        items=tuple(str(at) for at in range(items)),
        before=tuple(before.astype(float)),
        after=tuple(after.astype(float)),
        chance=0.25,
    )


def test_definition() -> None:
    made = BenchmarkPair(
        benchmark="four",
        items=("a", "b", "c", "d"),
        before=(1.0, 1.0, 1.0, 0.0),
        after=(1.0, 1.0, 0.0, 0.0),
        chance=0.25,
    )
    assert retention(made) == pytest.approx((0.5 - 0.25) / (0.75 - 0.25))
    assert retention(replace(made, before=(1.0, 0.0, 0.0, 0.0))) is None
    assert retention(replace(made, items=(), before=(), after=())) is None


def test_verdicts() -> None:
    unchanged = judge_benchmark(pair(1_000))
    assert (unchanged.outcome, unchanged.value) == ("PASS", 1.0)
    lost = judge_benchmark(pair(1_000, lost=0.15))
    assert lost.outcome == "FAIL"
    few = judge_benchmark(pair(60, lost=0.02), minutes_per_item=0.5)
    assert few.outcome == "INSUFFICIENT"
    assert few.items_needed is not None
    assert few.items_needed > 60
    assert few.minutes_needed == few.items_needed / 2
    for verdict in (unchanged, lost, few):
        assert verdict.bound is not None
        assert verdict.opposite_bound is not None
        assert verdict.value is not None
        assert verdict.bound <= verdict.value <= verdict.opposite_bound
        assert (verdict.outcome == "PASS") == (verdict.bound >= 0.95)


def test_pairing_is_what_makes_it_decidable() -> None:
    """With the same marks on other items before and after there is nothing to pair, and no verdict."""
    made = pair(1_000)
    apart = replace(made, after=tuple(np.random.default_rng(9).permutation(made.after)))
    assert retention(made) == retention(apart) == 1.0
    assert (judge_benchmark(made).outcome, judge_benchmark(apart).outcome) == ("PASS", "INSUFFICIENT")


def test_a_baseline_at_chance_is_undefined() -> None:
    verdict = judge_benchmark(pair(200, baseline=0.26))
    assert (verdict.outcome, verdict.value, verdict.bound) == ("INSUFFICIENT", None, None)
    assert "undefined: the baseline" in verdict.reason
    assert "chance, 0.25" in verdict.reason


def test_the_worst_benchmark_decides() -> None:
    good, bad = pair(1_000), replace(pair(1_000, lost=0.2), benchmark="creative")
    assert judge_retention([good, good]).outcome == "PASS"
    found = judge_retention([good, bad])
    assert found.outcome == "FAIL"
    assert found.reason.startswith("retention of creative")
    assert judge_retention([]).outcome == "INSUFFICIENT"


def test_the_mean_is_of_benchmarks_alike_and_stands_beside_the_minimum() -> None:
    found = overall({"sums": 0.99, "creative": 0.9, "facts": 1.02, "guessed": None})
    assert found is not None
    assert (found.benchmarks, found.undefined, found.minimum, found.lowest) == (4, 1, 0.9, "creative")
    assert found.mean == pytest.approx((0.99 + 0.9 + 1.02) / 3)
    assert found.text() == "over 4 benchmarks: minimum 0.9000 (creative), mean 0.9700; 1 of them undefined"
    assert overall({}) is None
    nothing = overall({"guessed": None})
    assert nothing is not None
    assert (nothing.minimum, nothing.mean, nothing.text()) == (None, None, "over 1 benchmark: 1 of them undefined")


def test_scores_out_of_range() -> None:
    with pytest.raises(UsageError, match="benchmark general"):
        replace(pair(3), chance=1.0)
    with pytest.raises(UsageError, match="different items"):
        replace(pair(3), items=("a", "a", "b"))
