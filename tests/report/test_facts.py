"""Facts are read from records as they are, with what is missing as None."""

import math

import pytest

from subeight.report import facts
from subeight.report.facts import Layer, Measure, Pair
from subeight.report.sections import inspect

from . import fixtures


def test_rows_of_a_comparison():
    record = fixtures.compare()
    rows = facts.candidates(record)
    assert [row.label for row in rows][:3] == ["rtn-int4", "awq-int4", "gptq-int4"]
    best = facts.best(record, rows)
    assert best is rows[2] and best.kl == Measure(0.0534, *record.numbers["rows"][2]["kl_ci"])
    assert best.categories["code"].value == record.numbers["rows"][2]["categories"]["code"]["kl"]
    assert best.positions[0][:2] == (0, 1) and best.choices.flips == 9
    assert facts.best(fixtures.compare(best=None), rows) is None


def test_missing_and_broken_numbers_are_none():
    row = facts.candidate({"kl": "high", "kl_ci": [1], "categories": [], "positions": [{"from": 1}], "ppl": True}, "x")
    assert row.kl == Measure() and row.ppl == Measure() and row.positions == () and row.choices is None
    assert facts.number(math.nan) is None and facts.number(True) is None and facts.whole(3.0) == 3
    assert facts.mappings("abc") == [] and facts.mapping(None) == {}


@pytest.mark.parametrize(
    ("low", "high", "says"),
    [(-2, -1, "a is closer"), (1, 2, "b is closer"), (-1, 1, "not told apart"), (None, None, "undecided")],
)
def test_a_pair_is_judged_by_its_interval(low, high, says):
    assert says in Pair("a", "b", Measure(0.0, low, high)).verdict


def test_roles_are_short_and_telling():
    names = ["model.layers.0.self_attn.q_proj", "model.layers.11.self_attn.q_proj", "lm_head"]
    assert facts.roles(names) == {names[0]: "q_proj", names[1]: "q_proj", "lm_head": "lm_head"}
    gpt = ["transformer.h.0.attn.c_proj", "transformer.h.0.mlp.c_proj", "transformer.h.0.mlp.c_fc"]
    assert list(facts.roles(gpt).values()) == ["attn.c_proj", "mlp.c_proj", "c_fc"]
    experts = [f"model.layers.2.mlp.experts.{n}.up_proj" for n in range(3)]
    assert set(facts.roles(experts).values()) == {"up_proj"}


def test_experts_are_thinned_to_the_worst():
    points = [Layer(f"e{e}", b, "up_proj", e + b / 10) for b in range(2) for e in range(50)]
    assert facts.worst_of_each(points, limit=100) is points
    assert [(p.name, p.block) for p in facts.worst_of_each(points, limit=10)] == [("e49", 0), ("e49", 1)]


def test_error_shares_by_format_and_tip():
    numbers = fixtures.inspect().numbers
    shares = inspect.error_shares(numbers["linears"])
    assert {name: set(tops) for name, tops in shares.items()} == {
        "int4": {"top0.1%", "top1%"}, "int3": {"top0.1%", "top1%"},
    }  # fmt: skip
    first = numbers["linears"][0]
    assert shares["int3"]["top1%"][0].value == first["error_share"]["int3"]["top1%"]
    assert len(shares["int4"]["top1%"]) == len(numbers["linears"])


def test_inputs_are_told_apart():
    groups = inspect.extremes(fixtures.inspect().numbers["inputs"])
    assert {name: len(points) for name, points in groups.items()} == {
        "massive, on few tokens": 3, "systematic channels": 10, "neither": 107,
    }  # fmt: skip


def test_labels():
    assert facts.label_of(fixtures.quantize()) == "gptq-int4"
    assert facts.label_of(fixtures.inspect()) == "SmolLM2-135M-Instruct"
    assert facts.model_of([fixtures.inspect()]) == fixtures.MODEL and facts.model_of([]) is None
