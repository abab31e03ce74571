"""A mixture of experts through the verbs: expert 2 of the first block reads German alone, and calibration is code."""

import json

import pytest

from subeight.errors import RecipeError
from subeight.models.model import Model
from subeight.recipes import load_recipe, resolve
from subeight.recipes.fallback import UNREACHED
from subeight.verbs import parity
from subeight.verbs.allocate import allocate
from subeight.verbs.evaluate import evaluate
from subeight.verbs.inspect import inspect
from subeight.verbs.map import map as mapped
from subeight.verbs.options import Options
from subeight.verbs.quantize import quantize
from tests.diagnose.calibration_case import rows, save_mixture
from tests.verbs import small
from tests.verbs.conftest import unchecked

STARVED = "model.layers.0.block_sparse_moe.experts.2"
RECIPE = (
    "name: mixture\nweights: int4:g32:sym\nmethods: [gptq]\n"
    "calibration: {source: TEXT, sequences: 6, length: 32, seed: 0}\n"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the model, its texts and its recipe."""
    folder = tmp_path_factory.mktemp("mixture")
    save_mixture(folder)
    small.write_rows(folder / "code.jsonl", rows("code", 60))
    small.write_rows(folder / "german.jsonl", rows("german", 30))
    small.write_rows(folder / "evals.jsonl", [*rows("code", 6, seed=3), *rows("german", 6, seed=4)])
    small.write_recipe(folder / "recipe.yaml", RECIPE, folder / "code.jsonl")
    return folder


def options(place, name, **more):
    fixed = {"out": place / name, "evals": (str(place / "evals.jsonl"),), "threads": 1, "dtype": "float32"}
    return Options(**{**fixed, "quiet": True, **more})


@pytest.fixture(scope="module")
def made(place):
    """Quantized by the recipe with some options, once for each name."""
    found = {}

    def find(name, recipe=RECIPE, **more):
        if name not in found:
            given = small.write_recipe(place / f"{name}.yaml", recipe, place / "code.jsonl")
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(parity, "check", unchecked)
                found[name] = quantize(str(place / "mixture"), str(given), options=options(place, name, **more))
        return found[name]

    return find


def tokens_of(result):
    return {row["expert"]: row["tokens"] for row in result.numbers["experts"]["rows"]}


def test_the_record_tells_what_each_expert_got(made):
    found = made("plain").numbers["experts"]
    rows = found["rows"]
    assert len(rows) == 8 and found["tokens"] == 192 and found["added"] == 0
    for block in (0, 1):
        assert sum(row["tokens"] for row in rows if row["block"] == block) == 2 * 192
    starved = next(row for row in rows if row["expert"] == STARVED)
    assert starved["tokens"] <= 12
    fed = [row for row in rows if row["tokens"] > 32]
    assert fed and all(abs(row["tapped"] - row["tokens"]) < 20 and row["calibration_error"] > 0 for row in fed)


def test_topped_up_out_of_a_pool_no_expert_stays_short(made, place):
    result = made("fed", per_expert=48, pool=str(place / "german.jsonl"))
    found, settings = result.numbers["experts"], result.record.settings["calibration"]
    assert found["short"] == {} and min(tokens_of(result).values()) >= 48
    assert found["added"] == settings["added"] > 0 and settings["sequences"] == 6 + found["added"]
    starved = next(row for row in found["rows"] if row["expert"] == STARVED)
    assert starved["tokens_before"] <= 12 and starved["tapped"] >= 48
    assert result.record.coordinates.calibration != made("plain").record.coordinates.calibration
    assert not [line for line in result.record.warnings if "per_expert" in line]


def test_what_no_text_reaches_is_named(made):
    result = made("short", per_expert=400)
    assert STARVED in result.numbers["experts"]["short"]
    assert any("stay under the 400 tokens" in line and STARVED in line for line in result.record.warnings)


def test_an_expert_that_nothing_reaches_is_rounded_plainly_and_named(made, place):
    text = RECIPE.replace("weights", "unreached: int8:channel\nweights").replace("sequences: 6", "sequences: 1")
    result = made("dry", text.replace("length: 32", "length: 3"))
    dry = [name for name, tokens in tokens_of(result).items() if not tokens]
    assert dry
    linears = {row["name"]: row for row in result.numbers["linears"]}
    for expert in dry:
        row = linears[f"{expert}.w1"]
        assert row["format"] == "int8:channel:sym" and UNREACHED in row["reason"] and row["output_error"] is None
    assert any("no token" in line and dry[0] in line for line in result.record.warnings)
    plan = json.loads((place / "dry" / "plan.json").read_text())
    assert plan["fingerprint"] == result.record.coordinates.recipe


def test_forced_calibration_shows_every_expert_all_tokens(made):
    result = made("forced", RECIPE.replace("seed: 0}", "seed: 0, forced: true}"))
    rows = result.numbers["experts"]["rows"]
    assert {row["tapped"] for row in rows} == {192}
    assert all(row["forced_bias"] is None or row["forced_bias"] > 0.01 for row in rows)
    assert "bias of forcing" in (result.directory / "report.html").read_text(encoding="utf-8")
    assert result.numbers["experts"]["forced"] and result.record.settings["calibration"]["forced"]
    assert tokens_of(result) == tokens_of(made("plain")), "routing itself is as it was"
    assert result.record.coordinates.calibration != made("plain").record.coordinates.calibration


def test_a_pool_without_a_minimum_is_refused(place):
    recipe = str(place / "recipe.yaml")
    with pytest.raises(RecipeError, match="give that too"):
        quantize(str(place / "mixture"), recipe, options=options(place, "no", pool=str(place / "german.jsonl")))
    assert not (place / "no").exists()
    bad = small.write_recipe(place / "bad.yaml", RECIPE.replace("seed: 0", "pool: x"), place / "code.jsonl")
    with pytest.raises(RecipeError, match="pool feeds experts"):
        quantize(str(place / "mixture"), str(bad), options=options(place, "no"))


def test_a_dry_run_looks_at_no_router(place, monkeypatch):
    def refused(*_args, **_options):
        raise AssertionError("a weight was read")

    monkeypatch.setattr("subeight.verbs.feeding.routes", refused)
    result = quantize(
        str(place / "mixture"),
        str(place / "recipe.yaml"),
        options=options(place, "dry-run", dry_run=True, per_expert=9),
    )
    assert result.numbers["bits_per_weight"] > 4


def test_feeding_the_starved_expert_mends_it_on_other_text(made, place):
    base = str(place / "mixture")
    errors: dict[str, dict[str, float]] = {}
    plain: list[list[float]] = []
    for name, more in (("plain", {}), ("fed", {"per_expert": 48, "pool": str(place / "german.jsonl")})):
        checkpoint = made(name, **more).directory
        result = evaluate(str(checkpoint), base, options=options(place, f"evaluated-{name}"))
        found = result.numbers["experts"]
        assert all(row["plain_error"] > 0 for row in found["rows"] if row["tokens"])
        plain.append([row["plain_error"] for row in found["rows"]])
        errors[name] = {row["expert"]: row["output_error"] for row in found["rows"]}
        assert 0 < found["changed"] < 1 and found["changed_ci"][0] <= found["changed"] <= found["changed_ci"][1]
        assert [row["block"] for row in found["routing"]] == [0, 1]
        page = (result.directory / "report.html").read_text(encoding="utf-8")
        assert "Inside the experts" in page and "of tokens go to another set of experts" in page
    assert errors["fed"][STARVED] < 0.8 * errors["plain"][STARVED]
    assert plain[0] == pytest.approx(plain[1]), "the same weights in the same format, whatever calibration was"


def test_inspect_shows_the_same_coverage(place):
    result = inspect(str(place / "mixture"), options=options(place, "x", calibration=str(place / "code.jsonl")))
    rows = result.numbers["experts"]["rows"]
    assert min(rows, key=lambda row: row["tokens"])["block"] in (0, 1) and len(rows) == 8
    page = (result.directory / "report.html").read_text(encoding="utf-8")
    assert "What calibration gives each expert" in page


@pytest.fixture(scope="module")
def map_by_expert(place):
    given = options(place, "map", eval_window=24, eval_tokens=200)
    return mapped(str(place / "mixture"), ("int8:g32", "int2:g32"), by="expert", options=given)


def test_a_map_by_expert_has_a_place_for_each(map_by_expert):
    places = {one["name"] for one in map_by_expert.numbers["places"]}
    assert {f"model.layers.{b}.block_sparse_moe.experts.{e}" for b in (0, 1) for e in range(4)} <= places
    damage = [cell for cell in map_by_expert.numbers["cells"] if cell["view"] == "damage"]
    losses = {(cell["place"], cell["format"]): cell["kl"] for cell in damage}
    assert losses[STARVED, "int2:g32:sym"] > losses[STARVED, "int8:g32:sym"]


@pytest.mark.parametrize(("engine", "mixed"), [("any", True), ("vllm", False)])
def test_bits_by_expert_are_free_where_no_engine_fuses_them(map_by_expert, place, engine, mixed):
    result = allocate(
        str(map_by_expert.directory), "6 bits", engine=engine, options=options(place, f"allocated-{engine}")
    )
    got = {choice["place"]: choice["format"] for choice in result.numbers["choices"]}
    kinds = [{got[f"model.layers.{b}.block_sparse_moe.experts.{e}"] for e in range(4)} for b in (0, 1)]
    assert any(len(formats) > 1 for formats in kinds) == mixed
    assert mixed or (kinds[0] == kinds[1] and None not in kinds[0]), "checkpoints for vLLM say one format for all"
    plan = resolve(load_recipe(str(place / f"allocated-{engine}" / "recipe.yaml")), Model(place / "mixture").linears)
    decided = [site for site in plan.sites if site.linear.block is not None and site.linear.kind != "router"]
    assert sum(site.bits * site.linear.count for site in decided) / sum(s.linear.count for s in decided) <= 6
