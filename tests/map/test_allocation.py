"""The program against every combination, by hand; pins, engines, fusions, and budgets that cannot be met."""

import ctypes
import importlib
import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from subeight.errors import InputError, SubeightError
from subeight.map.allocation import least_cost, within_cost, within_loss, worth
from subeight.map.budget import parse_budget
from subeight.map.choices import Option, Unit, monotone, units_of, wishes
from subeight.map.mapfile import MapPlace
from subeight.map.prediction import Prediction
from subeight.map.spend import decidable, spent
from tests.map.records import loss_of, places, read

allocation = importlib.import_module("subeight.map.allocation")  # `subeight.map` is the verb too


def unit(name: str, options: list[tuple[float, float]]) -> Unit:
    """A unit with options of these costs and losses."""
    made = MapPlace(name, (name,), 0, "linear", None, 8, 16.0, {str(n): c for n, (c, _) in enumerate(options)}, {})
    return Unit((made,), tuple(Option(str(n), cost, cost, loss) for n, (cost, loss) in enumerate(options)), True)


amounts = st.floats(0.001, 1000, allow_nan=False)
instances = st.lists(st.lists(st.tuples(amounts, amounts), min_size=1, max_size=4), min_size=1, max_size=5)


def combinations(units: list[Unit]) -> list[tuple[float, float]]:
    picks = itertools.product(*(unit.options for unit in units))
    return [(sum(o.cost for o in pick), sum(o.loss for o in pick)) for pick in picks]


@settings(max_examples=60, deadline=None)
@given(instances, st.floats(0, 1))
def test_no_combination_is_better(instance: list, share: float) -> None:
    units = [unit(str(number), options) for number, options in enumerate(instance)]
    every = combinations(units)
    low, high = min(c for c, _ in every), max(c for c, _ in every)
    budget = low + share * (high - low)
    made = within_cost(units, budget)
    assert made.cost <= budget * (1 + 1e-6)
    assert made.loss == pytest.approx(min(x for c, x in every if c <= budget * (1 + 1e-9)), rel=1e-6, abs=1e-9)
    most = made.loss
    cheap = within_loss(units, most)
    assert cheap.loss <= most * (1 + 1e-6)
    assert cheap.cost == pytest.approx(min(c for c, x in every if x <= most * (1 + 1e-9)), rel=1e-6)


def test_the_budget_holds_at_the_size_of_a_real_model() -> None:
    rng = np.random.default_rng(0)
    made = []
    for number in range(122):
        weights, scale = rng.integers(3e5, 3e6), rng.lognormal(0, 1.5) * 1e-3
        made.append(
            unit(str(number), [(weights * b / 8, scale * 4.0**-b * rng.uniform(0.8, 1.2)) for b in (2, 3, 4, 8, 16)])
        )
    low = least_cost(made)
    for budget in (1.2 * low, 1.5 * low, 2.1 * low):
        found = within_cost(made, budget)
        assert 0.999 * budget < found.cost <= budget
        assert worth(made, budget) > 0


def test_the_price_falls_as_the_budget_grows(tmp_path: Path) -> None:
    units = units_of(read(tmp_path))
    low = least_cost(units)
    prices = [worth(units, low * factor) for factor in (1.05, 1.5, 2, 3)]
    assert prices == sorted(prices, reverse=True) and prices[0] > prices[-1] > 0


def test_a_wider_format_never_counts_as_more_loss(tmp_path: Path) -> None:
    def noisy(row: dict, format: str) -> float:
        return 0.05 if format == "int8:g64:sym" else loss_of(row, format)  # above int3 and int4

    found = read(tmp_path, loss=noisy)
    for one in found.places:
        clean = monotone(one, found)
        falling = [clean[format] for format in reversed(found.formats)]  # the narrowest first
        assert falling == sorted(falling, reverse=True)
        assert clean["int8:g64:sym"] == clean["int4:g64:sym"] < 0.05


def test_bits_count_the_blocks_and_bytes_count_all(tmp_path: Path) -> None:
    found = read(tmp_path)
    prediction = Prediction(found)
    bits = parse_budget("4 bits")
    made = spent(found, decidable(found, bits), bits, prediction)
    assert made.formats()["model.embed_tokens"] is None
    assert 3.8 < made.inside()[1] <= 4.0
    size = parse_budget("0.4 MB")
    made = spent(found, decidable(found, size), size, prediction)
    assert made.formats()["model.embed_tokens"] is not None  # kept it would take all of it
    assert made.cost <= 4e5
    loss = parse_budget("kl 0.1")
    made = spent(found, decidable(found, loss), loss, prediction)
    assert 0.08 < prediction.expected(made.formats()).loss <= 0.1 * (1 + 1e-6)


@pytest.mark.parametrize("text", ["2 bits", "0.1 MB"])
def test_the_nearest_budget_that_can_be_met_is_named(tmp_path: Path, text: str) -> None:
    found = read(tmp_path)
    asked, prediction = parse_budget(text), Prediction(found)
    with pytest.raises(SubeightError, match="is infeasible") as caught:
        spent(found, decidable(found, asked), asked, prediction)
    assert caught.value.exit_status == 1
    nearest = parse_budget(str(caught.value).split("'")[-2])
    assert nearest.kind == asked.kind
    made = spent(found, decidable(found, nearest), nearest, prediction)
    assert made.cost == pytest.approx(least_cost(decidable(found, nearest)), rel=1e-2)


def test_the_nearest_loss_is_named_too(tmp_path: Path) -> None:
    found = read(tmp_path)
    pins = wishes(["*.down_proj=int2"], found, "--pin")
    asked, prediction = parse_budget("kl 0.0001"), Prediction(found)
    with pytest.raises(SubeightError, match="nearest") as caught:
        spent(found, decidable(found, asked, pins=pins), asked, prediction)
    nearest = parse_budget(str(caught.value).split("'")[-2])
    spent(found, decidable(found, nearest, pins=pins), nearest, prediction)


def test_pins_and_forbiddings_hold(tmp_path: Path) -> None:
    found = read(tmp_path)
    pins = wishes(["*.down_proj=int4", "*.3.mlp.down_proj=keep"], found, "--pin")  # the last one wins
    forbids = wishes(["*.q_proj=int3:g64:sym"], found, "--forbid")  # a linear of a place means the place
    asked = parse_budget("7 bits")
    got = spent(found, decidable(found, asked, pins=pins, forbids=forbids), asked, Prediction(found)).formats()
    assert got["model.layers.0.mlp.down_proj"] == "int4:g64:sym"
    assert got["model.layers.3.mlp.down_proj"] is None
    assert all(format != "int3:g64:sym" for name, format in got.items() if "q_proj" in name)
    pinned = wishes(["*embed*=int8"], found, "--pin")
    assert spent(found, decidable(found, asked, pins=pinned), asked, Prediction(found)).formats()["model.embed_tokens"]


@pytest.mark.parametrize(
    ("pins", "forbids", "sentence"),
    [
        (["down_proj"], [], "say GLOB=FORMAT"),
        (["*.nothing=int4"], [], "matches no place"),
        (["*.down_proj=int5"], [], "the map has int8:g64:sym"),
        (["*.down_proj=int4"], ["*.down_proj=int4"], "--pin .* asks"),
        ([], [f"*.down_proj={f}" for f in ("int8", "int4", "int3", "int2", "keep")], "--forbid leaves no format"),
    ],
)
def test_wishes_that_cannot_be(tmp_path: Path, pins: list, forbids: list, sentence: str) -> None:
    found = read(tmp_path)
    with pytest.raises(InputError, match=sentence):
        units_of(found, pins=wishes(pins, found, "--pin"), forbids=wishes(forbids, found, "--forbid"))


def test_an_engine_runs_what_it_gets(tmp_path: Path) -> None:
    rows = [row | {"runs_in": {f: ["vllm"] if "int4" in f else ["subeight"] for f in row["bits"]}} for row in places()]
    found = read(tmp_path, rows=rows)
    asked = parse_budget("5 bits")
    made = spent(found, decidable(found, asked, "vllm"), asked, Prediction(found))
    assert set(made.formats().values()) == {"int4:g64:sym", None}
    with pytest.raises(SubeightError, match=r"'4\.250 bits'"):
        low = parse_budget("4 bits")
        spent(found, decidable(found, low, "vllm"), low, Prediction(found))


def test_what_an_engine_fuses_is_decided_together(tmp_path: Path) -> None:
    def uneven(row: dict, format: str) -> float:
        return loss_of(row, format) * (50 if row["name"].endswith("q_proj") else 1)

    found = read(tmp_path, by="linear", loss=uneven)
    asked = parse_budget("4 bits")
    prediction = Prediction(found)
    free = spent(found, decidable(found, asked), asked, prediction)
    tied = spent(found, decidable(found, asked, "vllm"), asked, prediction)

    def apart(got: dict) -> list[int]:
        return [b for b in range(4) if len({got[f"model.layers.{b}.self_attn.{x}_proj"] for x in "qk"}) > 1]

    assert apart(free.formats()) and not apart(tied.formats())
    assert tied.loss >= free.loss


def test_the_solver_keeps_standard_output_free(tmp_path: Path, capfd, monkeypatch) -> None:
    solve = allocation.milp

    def talkative(*given: object, **more: object) -> object:
        ctypes.CDLL(None).puts(b"a line from C")
        os.write(1, b"a line from below\n")
        return solve(*given, **more)

    monkeypatch.setattr(allocation, "milp", talkative)
    print("before")
    within_cost(units_of(found := read(tmp_path)), found.weights)
    print("after")
    assert capfd.readouterr().out == "before\nafter\n"
