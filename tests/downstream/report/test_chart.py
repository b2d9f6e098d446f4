"""Line charts: geometry, words, and more than colour to tell curves apart."""

from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyscene.downstream.report.chart import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Line, line_chart, spread, ticks
from polyscene.downstream.report.palette import series_style


def draw(lines, **options):
    return ElementTree.fromstring(
        line_chart("chart-loss", "Loss, by epoch", lines, x_label="epoch", show="{:g}".format, **options)
    )


def test_points_land_where_axes_say():
    svg = draw([Line("A", "run", 0, ((0.0, 0.0), (5.0, 10.0), (10.0, 20.0)))], floor=0.0)
    points = [tuple(map(float, p.split(","))) for p in svg.find(".//polyline").get("points").split()]
    left, right, top, bottom = LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM
    expected = [(left, bottom), ((left + right) / 2, (top + bottom) / 2), (right, top)]
    assert [pytest.approx(e, abs=0.06) for e in expected] == points


def test_title_and_description_are_wired_and_say_the_numbers():
    svg = draw([Line("A", "first", 0, ((1.0, 3.0), (2.0, 1.0), (3.0, 2.0)))])
    assert svg.get("role") == "img"
    ids = [svg.find("title").get("id"), svg.find("desc").get("id")]
    assert svg.get("aria-labelledby").split() == ids
    assert svg.find("title").text == "Loss, by epoch"
    words = svg.find("desc").text
    assert "A, first: from 3 to 2 at epoch 3" in words
    assert "lowest 1 at 2, highest 3 at 1" in words


def test_curves_differ_in_dash_pattern_and_letter_not_only_in_colour():
    lines = [Line(letter, letter, i, ((0.0, i), (1.0, i))) for i, letter in enumerate("ABC")]
    svg = draw(lines)
    styles = [curve.get("style") for curve in svg.iter("polyline")]
    assert len({style.split("stroke-dasharray:")[1] for style in styles}) == 3
    assert [t.text for t in svg.iter("text") if t.get("class") == "letter"] == ["C", "B", "A"]
    assert len({series_style(i) for i in range(40)}) == 40


def test_names_are_escaped():
    svg = draw([Line("A", "<script>alert(1)</script>", 0, ((0.0, 1.0), (1.0, 2.0)))])
    assert svg.find(".//script") is None
    assert "<script>" in svg.find("desc").text


def test_one_point_and_equal_values_are_drawn():
    svg = draw([Line("A", "a", 0, ((5.0, 2.0),)), Line("B", "b", 1, ((0.0, 2.0), (5.0, 2.0)))])
    heights = [float(c.get("cy")) for c in svg.iter("circle")]
    assert heights
    assert all(TOP <= h <= HEIGHT - BOTTOM for h in heights)
    with pytest.raises(ValueError, match="no points"):
        draw([Line("A", "a", 0, ())])


@given(st.floats(-1e9, 1e9), st.floats(-1e9, 1e9))
def test_ticks_are_even_and_cover_the_range(a, b):
    low, high = min(a, b), max(a, b)
    found = ticks(low, high, 4)
    tolerance = 1e-6 * max(high - low, abs(low) * 0.1, 1e-9)
    assert found[0] <= low + tolerance
    assert found[-1] >= high - tolerance
    assert 2 <= len(found) <= 8
    gaps = [y - x for x, y in pairwise(found)]
    assert max(gaps) == pytest.approx(min(gaps), rel=1e-6)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=9))
def test_letters_keep_their_distance(places):
    moved = spread(sorted(places), 10, 0, 100)
    assert all(b - a >= 10 - 1e-6 for a, b in pairwise(moved))
    assert moved[0] >= -1e-6
    assert moved[-1] <= 100


def test_letters_that_are_apart_stay():
    assert spread([10.0, 40.0, 90.0], 11, 0, 100) == [10.0, 40.0, 90.0]
