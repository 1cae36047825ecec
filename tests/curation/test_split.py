"""Hold-outs by group: nothing on two sides, and what was held out stays held out."""

from __future__ import annotations

import pytest

from realign_cluster.curation.split import split_by_group
from realign_cluster.domain.errors import UsageError

FRACTIONS = {"train": 0.8, "valid": 0.1, "test": 0.1}
GROUPS = [f"entity {at % 600}" for at in range(3000)]


def test_groups_stay_whole_and_sizes_are_near_the_fractions() -> None:
    parts = split_by_group(GROUPS, FRACTIONS)
    assert sorted(row for part in parts.values() for row in part.rows) == list(range(3000))
    sides = [{GROUPS[row] for row in part.rows} for part in parts.values()]
    assert not sides[0] & sides[1]
    assert not sides[0] & sides[2]
    assert not sides[1] & sides[2]
    assert [part.groups for part in parts.values()] == [len(side) for side in sides]
    assert len(parts["test"].rows) / 3000 == pytest.approx(0.1, abs=0.035)


def test_more_data_moves_nothing() -> None:
    before = split_by_group(GROUPS, FRACTIONS, salt="a")
    more = [*(f"new {at}" for at in range(500)), *reversed(GROUPS)]
    after = split_by_group(more, FRACTIONS, salt="a")
    held = {GROUPS[row] for row in before["test"].rows}
    assert held <= {more[row] for row in after["test"].rows}
    assert before["test"].digest != after["test"].digest
    assert before["test"].digest == split_by_group(GROUPS[::-1], FRACTIONS, salt="a")["test"].digest
    assert before["test"].rows != split_by_group(GROUPS, FRACTIONS, salt="b")["test"].rows


def test_fractions_that_cannot_be() -> None:
    with pytest.raises(UsageError, match="do not add up to 1"):
        split_by_group(GROUPS, {"train": 0.8, "test": 0.1})
    with pytest.raises(UsageError, match="none of 1 groups falls into"):
        split_by_group(["one"], FRACTIONS)
