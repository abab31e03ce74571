"""Figures draw the numbers of the facts, on axes that can show them, and hand Plotly no markup of a model's."""

import itertools
import json
import math

import pytest

from subeight.report import axes, facts, figures
from subeight.report.facts import Layer
from subeight.report.sections import inspect

from . import fixtures
from .fixtures import HOSTILE


def rows():
    return facts.candidates(fixtures.compare())


def test_size_against_kl_draws_every_row_with_its_interval():
    shown = rows()
    figure = figures.size_against_kl(shown, shown[2])
    assert [(t.x[0], t.y[0]) for t in figure.data] == [(row.bits, row.kl.value) for row in shown]
    assert [t.marker.symbol for t in figure.data].count("star") == 1
    error = figure.data[0].error_y
    assert error.array[0] == pytest.approx(shown[0].kl.high - shown[0].kl.value)
    assert error.arrayminus[0] == pytest.approx(shown[0].kl.value - shown[0].kl.low)
    low, high = figure.layout.yaxis.range
    assert low < math.log10(min(r.kl.low for r in shown)) and high > math.log10(max(r.kl.high for r in shown))


def test_labels_at_one_size_do_not_overlap():
    same = [facts.candidate({"kl": 0.05 + k * 1e-4, "bits_per_weight": 4.25}, f"r{k}") for k in range(8)]
    figure = figures.size_against_kl(same, None)
    per_unit = (420 - 68) / (figure.layout.yaxis.range[1] - figure.layout.yaxis.range[0])
    heights = sorted(note.y * per_unit - note.ay for note in figure.layout.annotations)
    assert min(b - a for a, b in itertools.pairwise(heights)) > 15


def test_a_lossless_row_can_stand_on_a_log_axis():
    exact = facts.candidate({"kl": 0.0, "kl_ci": [0.0, 1e-9], "bits_per_weight": 16}, "dense")
    shown = [exact, facts.candidate({"kl": 0.1, "kl_ci": [-0.01, 0.2], "bits_per_weight": 4}, "int4")]
    for figure in (figures.size_against_kl(shown, None), figures.size_against_kl([exact], exact)):
        low, high = figure.layout.yaxis.range
        assert math.isfinite(low) and math.isfinite(high) and low < high
        assert all(low <= math.log10(trace.y[0]) <= high for trace in figure.data)
        assert all(len(trace.error_y.arrayminus) == 1 for trace in figure.data)


@pytest.mark.parametrize(("low", "high"), [(-1, 0), (-0.1, 0.2), (-5, 3), (2.0, 2.3)])
def test_log_axes_have_ticks_in_full(low, high):
    axis = axes.log_axis([low, high])
    assert len(axis["tickvals"]) >= 2
    assert all(low <= math.log10(tick) <= high for tick in axis["tickvals"])
    assert [float(text) for text in axis["ticktext"]] == pytest.approx(axis["tickvals"])


def test_layers_are_lines_by_role_and_the_rest_comes_last():
    points = [Layer(f"l{b}.q", b, "q_proj", 0.1 + b) for b in (1, 0, 2)] + [Layer("lm_head", None, "lm_head", 3.0)]
    figure = figures.by_layer(points, "error")
    by_name = {trace.name: trace for trace in figure.data}
    assert list(by_name["q_proj"].x) == [0, 1, 2] and list(by_name["q_proj"].y) == [0.1, 1.1, 2.1]
    assert list(by_name["lm_head"].x) == [3] and figure.layout.xaxis.ticktext[-1] == "other"


def test_many_experts_are_points_not_a_scribble():
    points = [Layer(f"e{e}", b, "up_proj", 1.0 + e) for b in range(2) for e in range(3)]
    assert figures.by_layer(points, "x").data[0].mode == "markers"


def every_figure():
    shown = rows()
    numbers = fixtures.inspect().numbers
    hostile = [Layer(HOSTILE, 0, HOSTILE, 1.0, HOSTILE)]
    yield figures.size_against_kl(shown, None)
    yield figures.kl_by_category(shown)
    yield figures.kl_by_position(shown)
    yield figures.by_layer(hostile, "x")
    yield figures.error_shares({HOSTILE: {HOSTILE: hostile}})
    yield figures.error_shares(inspect.error_shares(numbers["linears"]))
    yield figures.input_extremes({"neither": hostile})


def test_no_markup_reaches_plotly_and_every_figure_is_json():
    for figure in every_figure():
        text = figure.to_json()
        assert "<script" not in text and "<img" not in text
        json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
        assert figure.layout.height


def test_a_template_in_a_name_is_not_filled_in():
    row = facts.candidate({"kl": 0.1, "bits_per_weight": 4}, "%{y}")
    assert "%{" not in figures.size_against_kl([row], None).data[0].hovertemplate


def test_empty_facts_make_empty_figures():
    for figure in (figures.size_against_kl([], None), figures.kl_by_category([]), figures.by_layer([], "x")):
        assert len(figure.data) == 0
