import json
import re

import pytest

from tinybert_ds.report.charts import Scale, Series, line_chart, log_ticks, number, thin, ticks


def test_a_scale_takes_its_ends_to_its_ends_and_decades_to_equal_distances():
    assert [Scale(0, 10, 100, 0).place(value) for value in (0, 5, 10)] == [100, 50, 0]
    assert [round(Scale(0.01, 1, 0, 200, True).place(value), 6) for value in (0.01, 0.1, 1)] == [0, 100, 200]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 10, [0, 2, 4, 6, 8, 10]), (0.13, 0.31, [0.15, 0.2, 0.25, 0.3]), (-1, 1, [-1, -0.5, 0, 0.5, 1])],
)
def test_ticks_are_round_numbers_inside(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


def test_ticks_of_a_logarithmic_scale_are_powers_of_ten():
    assert log_ticks(1e-6, 2.0) == pytest.approx([1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1])
    assert log_ticks(0.3, 30) == pytest.approx([0.5, 1, 2, 5, 10, 20])


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.25, "0.25"), (1234.5, "1234"), (2e-5, "2e-5"), (1e6, "1e6"), (-3.0, "-3")]
)
def test_numbers_are_short(value, text):
    assert number(value) == text


def test_thinning_keeps_ends_and_spikes_and_the_order():
    points = [(step, 1.0) for step in range(10_000)]
    points[5003] = (5003, 99.0)
    points[7001] = (7001, -5.0)
    kept = thin(points, 400)
    assert len(kept) <= 402
    assert {points[0], points[-1], (5003, 99.0), (7001, -5.0)} <= set(kept)
    assert kept == sorted(kept)
    assert thin(points[:400], 400) == points[:400]


def test_a_line_goes_through_its_points():
    chart = line_chart("loss", [Series("a", [(0, 0.0), (10, 100.0)])])
    (path,) = re.findall(r'<polyline class="c0" points="([^"]*)"', chart)
    (x0, y0), (x1, y1) = ([float(part) for part in place.split(",")] for place in path.split())
    assert (x0, x1) == (64, 548)
    assert y0 > y1, "larger values stand higher"
    data = json.loads(re.search(r'application/json">(.*)</script>', chart)[1])
    assert data["lines"] == [[[0, 0.0], [10, 100.0]]]


def test_values_over_decades_are_drawn_on_a_logarithmic_scale_where_that_is_allowed():
    series = [Series("a", [(1, 100.0), (2, 1.0)])]
    assert "(log scale)" in line_chart("loss", series, may_be_logarithmic=True)
    assert "(log scale)" not in line_chart("share", series)
    assert "(log scale)" not in line_chart("loss", [Series("a", [(1, 100.0), (2, 0.0)])], may_be_logarithmic=True)


def test_one_point_and_constant_values_are_drawn_and_nothing_is_no_chart():
    assert "<circle" in line_chart("x", [Series("a", [(3, 0.0)])])
    assert "<polyline" in line_chart("x", [Series("a", [(1, 5.0), (2, 5.0)])])
    assert line_chart("x", [Series("a", [])]) == ""


def test_names_are_escaped_and_the_ninth_line_is_told_from_the_first():
    chart = line_chart("<b>", [Series(f"<{n}>", [(1, n), (2, n)]) for n in range(9)], marks=(2,))
    assert "<b>" not in chart
    assert "&lt;8&gt;" in chart
    assert 'class="c0" stroke-dasharray="6 3"' in chart
    assert "gone on from step 2" in chart
