"""Facts and figures of a diagnosis: what the record says, in order, and figures that draw just that."""

import json

import pytest

from subeight.report import diagnosis, diagnosis_figures
from subeight.report.facts import Layer, Measure

from . import diagnose_fixtures as fixtures
from .diagnose_fixtures import CULPRIT, PAIR
from .fixtures import HOSTILE


def told(record):
    return diagnosis.diagnosis(record)


def details(record, suspect):
    return next(step.details for step in told(record).steps if step.suspect == suspect)


def test_the_record_as_facts():
    found = told(fixtures.culprit())
    assert [step.suspect for step in found.steps] == list(diagnosis.SUSPECTS)
    assert [step.verdict for step in found.steps] == ["cleared"] * 4 + ["guilty"]
    assert found.places == (CULPRIT,) and found.causes[0].kind == "scales"
    assert found.recovered == Measure(0.951, pytest.approx(0.921), pytest.approx(0.981))
    assert found.evaluations == 0 + 1 + 2 + 2 + 17
    assert found.share_added == pytest.approx(663_552 / 35_600_000)
    assert [group.name for group in found.categories] == ["german", "code", "prose", HOSTILE]
    assert found.axis == "KL (nats per token)" and found.control.prompts == 32


def test_bytes_are_taken_from_the_prescription_where_the_verdict_has_none():
    record = fixtures.culprit()
    record.numbers["verdict"]["bytes_added"] = None
    assert told(record).bytes_added == 663_552
    record.numbers["prescription"]["bytes_after"] = None
    assert told(record).bytes_added is None and told(record).share_added is None


def test_a_check_command_is_a_metric_too():
    record = fixtures.culprit()
    record.numbers["metric"] = "check:./judge.sh --strict"
    assert told(record).axis == "share of checks failed"


def test_spread_is_seen_by_the_curve_and_a_culprit_is_not_spread():
    assert diagnosis.spread(details(fixtures.spread(), "layers"))
    assert not diagnosis.spread(details(fixtures.culprit(), "layers"))
    assert not diagnosis.spread({}) and not diagnosis.spread({"curve": [{"restored": 1, "recovered": 1.0}]})


def test_rank_counts_from_the_largest():
    points = diagnosis.by_name(details(fixtures.culprit(), "layers")["weight_errors"].items())
    above = sum(point.value > 0.176 for point in points)
    assert diagnosis.rank(points, CULPRIT) == above + 1 and diagnosis.rank(points, "nobody") is None


@pytest.mark.parametrize(
    ("name", "block"),
    [("model.layers.3.mlp.up_proj", 3), ("transformer.h.12.attn.c_attn", 12), ("lm_head", None), ("fp8.w2", None)],
)
def test_block_of_a_name(name, block):
    assert diagnosis.block_of(name) == block


def test_search_draws_every_test_in_order_with_its_interval():
    trials = diagnosis.trials(details(fixtures.culprit(), "layers"))
    figure = diagnosis_figures.search(trials)
    restored, anew, damaged = figure.data
    assert [trials[row].what for row in anew.y] == ["round anew"]
    assert list(restored.x) == [t.recovered.value for t in trials if t.what == "restore"]
    assert list(damaged.y) == [len(trials) - 1]
    assert restored.error_x.array[0] == pytest.approx(trials[0].recovered.high - trials[0].recovered.value)
    assert figure.layout.yaxis.ticktext[0] == "1 · 105" and figure.layout.yaxis.range[0] > figure.layout.yaxis.range[1]
    named = [note.text for note in figure.layout.annotations]
    assert "11.mlp.down_proj" in named and len(named) == sum(t.places == 1 for t in trials)


def test_the_curve_starts_at_nothing_and_has_its_straight_line():
    figure = diagnosis_figures.recovery([(1, 0.9, None), (5, 0.02, None), (10, 1.0, 5e6)])
    even, most, tests = figure.data
    assert list(even.x) == [0, 10] and list(even.y) == [0, 1.0]
    assert list(most.x) == [0, 1, 5, 10] and list(most.y) == [0.0, 0.9, 0.9, 1.0]
    assert list(tests.y) == [0.9, 0.02, 1.0]


def test_the_guilty_stand_out_among_all():
    points = diagnosis.by_name(details(fixtures.pair(), "layers")["weight_errors"].items())
    others, guilty = diagnosis_figures.among_all(points, PAIR, "error").data
    assert len(others.x) == 208 and list(guilty.x) == [4, 19]


def test_losses_put_the_worst_on_top_and_the_control_last():
    found = told(fixtures.culprit())
    failing, control = diagnosis_figures.losses(found.categories, 0.8, found.control, found.axis).data
    assert list(failing.y) == [0, 1, 2, 3] and list(failing.x) == sorted(failing.x, reverse=True)
    assert list(control.y) == [4] and list(control.x) == [0.021]


def test_no_markup_reaches_plotly_and_missing_numbers_are_left_out():
    group = diagnosis.Group(HOSTILE, Measure(1.0), None)
    bare = diagnosis.Trial(HOSTILE, 1, (HOSTILE,), Measure(), Measure(0.5), None)
    empty = diagnosis.Trial("restore", None, (), Measure(), Measure(), None)
    for figure in (
        diagnosis_figures.losses([group, diagnosis.Group("x", Measure(), 3)], None, group, HOSTILE[:3]),
        diagnosis_figures.search([bare, empty]),
        diagnosis_figures.search([]),
        diagnosis_figures.recovery([]),
        diagnosis_figures.among_all([Layer(HOSTILE, None, "r", 1.0)], [HOSTILE], "x"),
        diagnosis_figures.among_all([], [], "x"),
    ):
        text = figure.to_json()
        assert "<script" not in text and figure.layout.height
        json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
