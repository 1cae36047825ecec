"""The flatness rule: better, flat, worse, undecided."""

from __future__ import annotations

import numpy as np
import pytest

from realign_cluster.domain.gate import Measurement
from realign_cluster.domain.iteration import Change, change_of, judge_trend

UP = Change(value=0.05, lower=0.03, upper=0.07, items=500)
DOWN = Change(value=-0.05, lower=-0.07, upper=-0.03, items=500)
STILL = Change(value=0.002, lower=-0.01, upper=0.015, items=5_000)
SMALL = Change(value=0.01, lower=0.002, upper=0.018, items=5_000)
WIDE = Change(value=0.0, lower=-0.04, upper=0.04, items=100)
NOTHING = Change(value=None, lower=None, upper=None, items=0)


@pytest.mark.parametrize(
    ("changes", "trend"),
    [
        ([], "undecided"),
        ([UP], "better"),
        ([STILL, STILL, STILL], "flat"),
        ([SMALL, SMALL, SMALL], "flat"),
        ([STILL, SMALL], "better"),
        ([UP, STILL, STILL], "undecided"),
        ([STILL, WIDE, STILL, STILL], "undecided"),
        ([WIDE, STILL, STILL, STILL], "flat"),
        ([STILL, STILL, STILL, DOWN], "worse"),
        ([WIDE], "undecided"),
        ([STILL, STILL, NOTHING], "undecided"),
    ],
)
def test_rule(changes: list[Change], trend: str) -> None:
    assert judge_trend(changes)[0] == trend


def test_reasons_count() -> None:
    assert judge_trend([UP, STILL, STILL])[1].startswith("2 of 3 changes in a row within 0.02")
    assert "100 items" in judge_trend([WIDE])[1]


def differences(values: np.ndarray) -> Measurement:
    names = tuple(str(at) for at in range(values.size))
    return Measurement(metric="m", items=names, values=tuple(values), verifier="v", dataset="d")


def test_changes_of_paired_answers() -> None:
    generator = np.random.default_rng(1)
    improved = generator.choice([0.0, 1.0, -1.0], 400, p=[0.7, 0.25, 0.05])
    assert judge_trend([change_of(differences(improved))])[0] == "better"
    assert judge_trend([change_of(differences(improved), better="at most")])[0] == "worse"
    change = change_of(differences(improved))
    assert change.value == pytest.approx(improved.mean())
    same = change_of(differences(np.zeros(2_000)))
    assert same.is_within()
    assert change_of(differences(np.zeros(0))) == NOTHING
