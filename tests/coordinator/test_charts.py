from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realign_cluster.coordinator import charts
from realign_cluster.coordinator.charts import Marker, Part, Series, Span


@given(st.floats(1e-6, 1e12), st.integers(2, 8))
def test_ticks_begin_at_zero_and_cover_the_top(top: float, about: int):
    ticks = charts.nice_ticks(top, about)
    assert ticks[0] == 0
    assert ticks[-1] >= top * (1 - 1e-9)
    assert len(ticks) <= 2 * about + 2


@given(st.floats(0.05, 1e7))
def test_time_ticks_are_few_and_inside(seconds: float):
    ticks = charts.time_ticks(seconds)
    assert 1 <= len(ticks) <= 11
    assert ticks[-1] <= seconds * (1 + 1e-9)


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0 s"), (0.25, "0.25 s"), (45, "45 s"), (125, "2:05"), (3725, "1:02:05")]
)
def test_clock(seconds: float, shown: str):
    assert charts.clock(seconds) == shown


def test_every_chart_is_valid_xml_with_its_titles():
    marker = Marker(at=1.0, label="a <lost> & found", trouble=True)
    series = Series(label="a", values=[1.0, 2.0], style="n0")
    useful = Part(fraction=0.7, style="busy", title="useful", label="useful 70 %")
    drawn = [
        charts.stacked_over_time([series], 2.0, unit="rows/s", markers=[marker]),
        charts.lanes([("a&b", [Span(begin=0, end=1, style="busy", title="x < y")])], 2.0, markers=[marker]),
        charts.bar([useful, Part(fraction=0.3, style="tail", title="t")]),
        charts.paired_bars([("a", 0.6, 0.7, "n0"), ("b", None, 0.3, "n1")]),
        charts.histogram([0.0, 1.0, 2.0], [3, 4], mean=1.0, median=0.9),
    ]  # fmt: skip
    for svg in drawn:
        assert ElementTree.fromstring(svg).tag == "svg"
    assert "a &lt;lost&gt; &amp; found" in drawn[0]


def test_nothing_to_draw_is_nothing():
    assert charts.stacked_over_time([], 1.0, unit="x") == ""
    assert charts.lanes([], 1.0) == ""
    assert charts.paired_bars([]) == ""
    assert charts.histogram([0.0, 1.0], [0], mean=None, median=None) == ""


def test_a_long_name_keeps_its_beginning_and_its_end() -> None:
    name = "the-mac-studio-under-the-desk-of-the-third-floor-1"
    drawn = charts.paired_bars([(name, 0.6, 0.7, "n0")])
    assert f"<title>{name}</title>" in drawn
    assert "the-mac-studio-u…" in drawn
    assert "third-floor-1</text>" in drawn
