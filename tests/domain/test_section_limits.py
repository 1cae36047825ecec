"""How long a rank may be without progress in each section."""

from __future__ import annotations

from typing import get_args

import pytest

from realign_cluster.domain.section_limits import Pace, SectionLimits, SectionName

LIMITS = SectionLimits()


def test_computing_may_take_three_times_the_slowest_piece_and_five_seconds_in_any_case() -> None:
    pace = Pace(LIMITS)
    assert pace.patience("evaluate") == LIMITS.first_piece_seconds
    pace.took("evaluate", 1.0)
    assert pace.patience("evaluate") == 5.0
    pace.took("evaluate", 4.0)
    pace.took("evaluate", 2.0)
    assert pace.patience("evaluate") == 12.0
    assert pace.patience("generate") == LIMITS.first_piece_seconds  # of which nothing was seen


def test_a_step_of_more_tokens_than_any_before_may_take_longer_by_as_much() -> None:
    pace = Pace(LIMITS)
    pace.took("step", 2.0, work=1000)
    pace.took("step", 1.0, work=400)
    assert pace.patience("step", work=500) == pace.patience("step", work=1000) == 6.0
    assert pace.patience("step", work=5000) == 30.0
    assert pace.patience("reduce", work=5000) == 30.0  # the others compute meanwhile


@pytest.mark.parametrize("section", get_args(SectionName))
def test_every_section_has_a_limit_before_anything_is_known(section: SectionName) -> None:
    assert 0 < Pace(LIMITS).patience(section) <= LIMITS.wait_seconds
