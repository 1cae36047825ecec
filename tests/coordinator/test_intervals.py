"""Estimates with bounds, drawn."""

from __future__ import annotations

import math
import re

import pytest

from realign_cluster.coordinator.intervals import Estimate, intervals


def test_a_judged_value_has_whiskers_and_its_threshold_and_leads_somewhere():
    drawn = intervals(
        ["1", "2"],
        [
            Estimate(slot=0, value=0.5, title="before"),
            Estimate(slot=1, value=0.9, low=0.8, high=0.95, threshold=0.85, style="kept", title="<after>", href="#x"),
        ],
        label="recall",
    )
    assert drawn.count('class="whisker kept"') == 1
    assert drawn.count('class="mean"') == 1
    assert '<a href="#x"><circle class="kept"' in drawn
    assert "&lt;after&gt;" in drawn
    assert 'class="n0 open"' in drawn


def test_better_stands_higher_and_whiskers_are_around_the_value():
    drawn = intervals(["1"], [Estimate(slot=0, value=0.5, low=0.25, high=0.75)], label="x")
    y1, y2 = map(float, re.findall(r'<g class="whisker n0"><line [^>]*y1="([\d.]+)" y2="([\d.]+)"', drawn)[0])
    centre = float(re.findall(r'cy="([\d.]+)"', drawn)[0])
    assert y1 < centre < y2
    assert centre - y1 == pytest.approx(y2 - centre, abs=0.2)


def test_a_threshold_far_away_is_said_and_does_not_flatten_the_values():
    drawn = intervals(["1"], [Estimate(slot=0, value=12.0, low=11.0, high=13.0, threshold=900000.0)], label="x")
    assert "threshold 900,000: off the scale" in drawn
    assert 'class="mean"' not in drawn


def test_what_cannot_be_negative_has_its_axis_at_0():
    drawn = intervals(["1", "2"], [Estimate(slot=at, value=0.0) for at in range(2)], label="x")
    assert "-" not in "".join(re.findall(r'text-anchor="end">(.*?)</text>', drawn))


def test_without_a_value_there_is_no_drawing():
    assert intervals(["1"], [Estimate(slot=0, value=math.nan)], label="x") == ""
    assert intervals(["1"], [], label="x") == ""
