"""Reasons and doubts: each doubt is planted and found, and none is found where nothing was planted."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from subeight.map.allocation import worth
from subeight.map.budget import parse_budget
from subeight.map.choices import wishes
from subeight.map.explain import Explainer
from subeight.map.mapfile import RESCUE, MapFile, read_map
from subeight.map.prediction import Prediction
from subeight.map.spend import decidable, spent
from tests.map.records import cell, loss_of, numbers, places, read, write

PLANTED = "model.layers.2.mlp.down_proj"


def choices(found: MapFile, budget: str = "3.6 bits", pins: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    asked = parse_budget(budget)
    units = decidable(found, asked, pins=wishes(pins, found, "--pin"))
    made = spent(found, units, asked, Prediction(found))
    return {row["place"]: row for row in Explainer(found, made, worth(units, made.cost)).choices()}


def test_every_place_has_its_reason_and_its_next_step(tmp_path: Path) -> None:
    found = read(tmp_path, spread=1.001)
    rows = choices(found)
    assert set(rows) == {place.name for place in found.places}
    for row in rows.values():
        if row["format"] is None:
            assert row["reason"].startswith("kept") and row["next"] is None
            continue
        assert row["reason"].startswith(row["format"]) and "(chosen)" in row["reason"]
        assert row["next"]["gain"] > 0 and row["next"]["price"] > 0
        assert "for one more bit" in row["reason"] and "elsewhere" in row["reason"]
    assert "outside of the blocks" in rows["model.embed_tokens"]["reason"]


def test_a_pin_is_the_reason(tmp_path: Path) -> None:
    row = choices(read(tmp_path), pins=["*.2.mlp.down_proj=int8"])[PLANTED]
    assert row["reason"] == "int8:g64:sym: pinned by *.2.mlp.down_proj=int8." and row["next"] is None


def test_tight_intervals_leave_no_doubt(tmp_path: Path) -> None:
    assert not [row for row in choices(read(tmp_path, spread=1.0001)).values() if row["doubts"]]


def test_a_wide_interval_is_doubted_where_the_choice_changes_in_it(tmp_path: Path) -> None:
    content = numbers(places(), spread=1.0001)
    for row in content["cells"]:
        if row["place"] == PLANTED:
            row["kl_ci"] = [row["kl"] / 30, row["kl"] * 30]
    rows = choices(read_map(write(tmp_path, content)))
    doubted = [name for name, row in rows.items() if any("wide interval" in doubt for doubt in row["doubts"])]
    assert doubted == [PLANTED]


def test_a_category_that_the_average_hides_is_named(tmp_path: Path) -> None:
    content = numbers(places(), spread=1.0001)
    for row in content["cells"]:
        # code is hard everywhere, German in one place alone
        row["categories"] = {"code": 3 * row["kl"], "german": (5 if row["place"] == PLANTED else 1) * row["kl"]}
    rows = choices(read_map(write(tmp_path, content)))
    doubted = {name: row["doubts"] for name, row in rows.items() if row["doubts"]}
    assert list(doubted) == [PLANTED]
    assert doubted[PLANTED] == ["german loses 5 times the average here, which the average hides"]


def test_damage_and_rescue_that_disagree_are_told(tmp_path: Path) -> None:
    content = numbers(rows := places(blocks=6), spread=1.0001)
    whole = content["whole"]["int2:g64:sym"]["kl"]
    inside = [row for row in rows if row["block"] is not None]
    most = max(loss_of(row, "int2:g64:sym") for row in inside)
    for row in inside:
        given = loss_of(row, "int2:g64:sym") if row["name"] != "model.layers.5.mlp.down_proj" else most / 1000
        content["cells"].append(cell(row["name"], "int2:g64:sym", RESCUE, whole - given))
    found = choices(read_map(write(tmp_path, content)))
    doubted = {name: row["doubts"] for name, row in found.items() if row["doubts"]}
    assert list(doubted) == ["model.layers.5.mlp.down_proj"]
    assert "damage and rescue disagree at int2:g64:sym" in doubted["model.layers.5.mlp.down_proj"][0]
