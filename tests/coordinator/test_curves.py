"""Curves: what is drawn lies where it should, and says what it is."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import pytest

from realign_cluster.coordinator.charts import LEFT, RIGHT, WIDTH
from realign_cluster.coordinator.curves import MOST_POINTS, Curve, Kept, Mark, curves, smoothed

STRAIGHT = [(float(step), 2.0 + step / 10) for step in range(1, 61)]


def line(points: list[tuple[float, float]], **options: bool) -> Curve:
    return Curve(label="loss", points=points, style="n0", **options)


def corners(svg: str) -> list[tuple[float, float]]:
    (found,) = re.findall(r'<polyline[^>]*points="([^"]*)"', svg)
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in found.split())]


def ticks(svg: str) -> list[str]:
    return re.findall(r'<text class="tick"[^>]*text-anchor="middle">([^<]*)<', svg)


def test_nothing_is_drawn_of_nothing():
    assert curves([], unit="loss") == ""
    assert curves([line([(1.0, math.nan), (2.0, math.inf)])], unit="loss") == ""


def test_a_line_goes_from_left_to_right_and_up_where_values_rise():
    drawn = corners(curves([line(STRAIGHT)], unit="loss"))
    assert len(drawn) == len(STRAIGHT)
    assert [x for x, _ in drawn] == sorted(x for x, _ in drawn)
    assert drawn[-1][0] == WIDTH - RIGHT
    assert [y for _, y in drawn] == sorted((y for _, y in drawn), reverse=True)


def test_steps_are_marked_at_round_numbers_from_0():
    assert ticks(curves([line(STRAIGHT)], unit="loss")) == ["0", "10", "20", "30", "40", "50", "60"]
    later = [(step + 1000, value) for step, value in STRAIGHT]
    assert ticks(curves([line(later)], unit="loss"))[0] == "1,010"


def test_points_that_are_no_numbers_are_left_out():
    drawn = corners(curves([line([(1.0, 2.0), (2.0, math.nan), (3.0, 2.5)])], unit="loss"))
    assert len(drawn) == 2


def test_equal_ratios_are_equal_distances_where_values_span_many_times():
    falling = [(0.0, 8.0), (1.0, 4.0), (2.0, 2.0), (3.0, 1.0)]
    svg = curves([line(falling)], unit="loss", logarithmic=True)
    heights = [y for _, y in corners(svg)]
    apart = [after - before for before, after in pairwise(heights)]
    assert apart == pytest.approx([apart[0]] * 3, abs=0.11)
    assert "loss, logarithmic" in svg


@pytest.mark.parametrize("low", [0.0, -1.0, 3.0])
def test_values_are_never_logarithmic_that_cannot_be_or_need_not(low: float):
    assert "logarithmic" not in curves([line([(1.0, low), (2.0, 9.0)])], unit="loss", logarithmic=True)


def test_a_logarithmic_axis_ends_at_a_thousandth_with_what_is_less_at_its_foot():
    deep = [(float(step), 10.0**-step) for step in range(12)]
    svg = curves([line(deep)], unit="loss", logarithmic=True)
    assert re.findall(r'text-anchor="end">([^<]*)<', svg) == ["0.001", "0.01", "0.1", "1"]
    assert len({y for _, y in corners(svg)[4:]}) == 1


def test_drawings_of_one_run_share_their_axis():
    short = corners(curves([line(STRAIGHT[:30])], unit="loss", until=60.0))
    long = corners(curves([line(STRAIGHT)], unit="loss", until=60.0))
    assert [x for x, _ in short] == [x for x, _ in long[:30]]


def test_a_mark_stands_at_its_step_with_its_name_and_its_story():
    svg = curves([line(STRAIGHT)], unit="loss", marks=[Mark(at=30.0, names=("2",), label="the <b> one", trouble=True)])
    middle = LEFT + (WIDTH - RIGHT - LEFT) / 2
    assert f'<circle cx="{middle:.1f}"' in svg
    assert "marker trouble" in svg
    assert "the &lt;b&gt; one" in svg


def test_a_mark_has_the_longest_name_that_there_is_room_for():
    names = ("generation 2: a long story of what happened", "generation 2", "2")
    far = curves([line(STRAIGHT)], unit="loss", marks=[Mark(at=10.0, names=names, label="")])
    assert f">{names[0]}</text>" in far
    crowd = [Mark(at=float(at), names=names, label="") for at in (10, 12, 20, 60)]
    svg = curves([line(STRAIGHT)], unit="loss", marks=crowd)
    assert svg.count("<circle") == 4
    assert [name for name in re.findall(r"<text[^>]*>([^<]*)</text>", svg) if name in names] == [
        "2",
        "generation 2",
        names[0],
    ]  # none for the last, at the edge


def test_what_lies_outside_is_not_drawn_at_the_edge():
    marks, kept = [Mark(at=99.0, names=("x",), label="")], [Kept(at=99.0, label="snapshot of step 99")]
    svg = curves([line(STRAIGHT)], unit="loss", marks=marks, kept=kept)
    assert "marker" not in svg
    assert "snapshot" not in svg


def test_states_are_ticks_at_the_foot():
    kept = [Kept(at=5.0, label="snapshot of step 5"), Kept(at=10.0, label="checkpoint of step 10", large=True)]
    svg = curves([line(STRAIGHT)], unit="loss", kept=kept)
    assert svg.count('<line class="snapshot"') == 1
    assert svg.count('<line class="checkpoint"') == 1


def test_dots_are_drawn_one_by_one_and_rings_are_empty():
    svg = curves([line(STRAIGHT[:3], dots=True, hollow=True)], unit="loss")
    assert svg.count('class="n0 ring"') == 3
    assert "loss at step 3: 2.3" in svg


def test_a_long_line_has_no_more_points_than_a_screen_and_keeps_its_end():
    long = [(float(step), float(step % 7)) for step in range(10 * MOST_POINTS + 3)]
    drawn = corners(curves([line(long)], unit="loss"))
    assert len(drawn) <= MOST_POINTS + 2
    assert drawn[-1][0] == WIDTH - RIGHT


def test_a_mean_follows_a_straight_line_and_flattens_noise():
    assert [value for _, value in smoothed([(float(step), 3.0) for step in range(9)])] == pytest.approx([3.0] * 9)
    straight = [value for _, value in smoothed(STRAIGHT)]
    assert straight[:-2] == pytest.approx([value for _, value in STRAIGHT][:-2])
    noise = [(float(step), float(step % 2)) for step in range(1000)]
    assert all(0.4 < value < 0.6 for _, value in smoothed(noise)[5:])
    assert smoothed([]) == []
