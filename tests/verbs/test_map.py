"""`map` on a tiny model: its numbers, the same from workers, resumed, and what it refuses."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from subeight.errors import InputError
from subeight.map import course, schedule
from subeight.map.mapfile import map_of
from subeight.map.prediction import Prediction
from subeight.map.work import MapJob
from subeight.recipes import load_recipe
from subeight.recipes.recipe import Rule
from subeight.sweep import Where
from subeight.verbs.allocate import allocate
from subeight.verbs.evaluate import evaluate
from subeight.verbs.map import map as mapped
from subeight.verbs.options import Options
from subeight.verbs.quantize import quantize
from tests.verbs.small import GPTQ, save_llama, write_text

FORMATS = ("int8:g32", "int4:g32", "int2:g32")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("model") / "llama", num_hidden_layers=3)


def options(folder: Path, name: str = "map", **more: object) -> Options:
    text = write_text(folder / "text.txt", words=400)
    settings = {"out": folder / name, "evals": (str(text),), "eval_window": 24, "quiet": True, "threads": 1}
    return Options(**{**settings, **more})  # type: ignore[arg-type]


def cells_of(numbers: dict) -> list[tuple]:
    return [(c["place"], c["format"], c["view"], c["kl"], tuple(c["kl_ci"]), c["tokens"]) for c in numbers["cells"]]


@pytest.fixture(scope="module")
def found(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("found")
    result = mapped(str(model), FORMATS, share=0.5, options=options(folder))
    return {"numbers": result.numbers, "folder": folder}


def test_every_place_is_measured_in_every_format(found: dict) -> None:
    numbers = found["numbers"]
    assert numbers["formats"] == ["int8:g32:sym", "int4:g32:sym", "int2:g32:sym"]
    damage = [c for c in numbers["cells"] if c["view"] == "damage"]
    places = [place["name"] for place in numbers["places"]]
    assert len(places) == 3 * 4 + 2  # four groups a block, embeddings and head
    assert {(c["place"], c["format"]) for c in damage} == {(p, f) for p in places for f in numbers["formats"]}
    loss = {(c["place"], c["format"]): c["kl"] for c in damage}
    assert all(loss[p, "int2:g32:sym"] > loss[p, "int8:g32:sym"] > 0 for p in places)
    assert all(c["kl_ci"][0] <= c["kl"] <= c["kl_ci"][1] for c in damage)
    assert numbers["controls"]["no_swap"] == 0.0
    assert numbers["controls"]["floor"]["kl"] > 0 and len(numbers["controls"]["noise"]) == 8
    assert numbers["cost"]["share"] <= 0.501
    rescue = [c for c in numbers["cells"] if c["view"] == "rescue"]
    assert {c["format"] for c in rescue} == {"int2:g32:sym"} and len(rescue) == 12
    whole = numbers["whole"]["int2:g32:sym"]
    assert len(whole["samples"]) == len(numbers["samples"]) and whole["kl"] > numbers["whole"]["int8:g32:sym"]["kl"]


def test_mixtures_are_allocations_measured_as_wholes(model: Path, found: dict, tmp_path: Path) -> None:
    numbers = found["numbers"]
    mixtures = numbers["mixtures"]
    assert 3 <= len(mixtures) <= 8
    inside = [place["name"] for place in numbers["places"] if place["block"] is not None]
    assert all({name for name, format in row["formats"].items() if format} == set(inside) for row in mixtures)
    wholes = [numbers["whole"][format]["kl"] for format in numbers["formats"]]
    assert all(wholes[0] < row["kl"] < wholes[-1] for row in mixtures)
    row = mixtures[len(mixtures) // 2]
    prediction = Prediction(map_of(numbers))
    assert prediction.expected(row["formats"]).loss == pytest.approx(row["kl"], rel=1e-6)
    # the very model that its recipe makes
    rules = [
        {"match": linear, "weights": row["formats"][place["name"]]}
        for place in numbers["places"]
        if place["block"] is not None
        for linear in place["linears"]
    ]
    recipe = load_recipe("rtn-int4").model_copy(update={"rules": [Rule(**rule) for rule in rules]})
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    made = quantize(str(model), recipe=str(tmp_path / "recipe.yaml"), options=options(tmp_path, "mixed"))
    measured = evaluate(
        str(tmp_path / "mixed"), against=str(model), options=options(tmp_path, "evaluation", dtype="float32")
    )
    assert made.directory is not None and measured.numbers["kl"] == pytest.approx(row["kl"], rel=1e-3)


@pytest.mark.parametrize("format", ["int4:g32:sym", "int2:g32:sym"])
def test_a_whole_has_the_blocks_quantized_and_embeddings_as_they_were(
    model: Path, found: dict, tmp_path: Path, format: str
) -> None:
    recipe = load_recipe("rtn-int4").model_copy(update={"weights": format})
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    quantize(str(model), recipe=str(tmp_path / "recipe.yaml"), options=options(tmp_path, "uniform"))
    measured = evaluate(
        str(tmp_path / "uniform"), against=str(model), options=options(tmp_path, "evaluation", dtype="float32")
    )
    assert measured.numbers["kl"] == pytest.approx(found["numbers"]["whole"][format]["kl"], rel=1e-3)


def test_the_prior_orders_small_errors(found: dict) -> None:
    assert found["numbers"]["priors"]["int8:g32:sym"]["prior"] > 0.7


def test_all_of_the_text_is_read_where_nothing_is_settled(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, limit in ((schedule, "_MISORDERED"), (schedule, "_REGRET"), (course, "_MIXING")):
        monkeypatch.setattr(module, limit, 0.0)
    numbers = mapped(str(model), FORMATS, share=1.0, rescue=(), options=options(tmp_path)).numbers
    samples = len(numbers["samples"])
    seen = [c for c in numbers["cells"] if c["samples"] == samples]
    assert len(seen) >= len(numbers["cells"]) / 2
    assert {c["tokens"] for c in seen} == {int(sum(s["tokens"] for s in numbers["samples"]))}


def test_a_dry_run_writes_nothing(model: Path, tmp_path: Path) -> None:
    result = mapped(str(model), FORMATS, options=options(tmp_path, dry_run=True))
    assert result.numbers["predicted"]["cells"] == 42 and result.directory is None
    assert any("14 places in 3 formats" in line for line in result.lines) and not (tmp_path / "map").exists()


@pytest.mark.parametrize("where", [Where(workers=2)])
def test_workers_give_the_same_map(model: Path, found: dict, tmp_path: Path, where: Where) -> None:
    again = mapped(str(model), FORMATS, share=0.5, workers=where, options=options(tmp_path)).numbers
    assert cells_of(again) == cells_of(found["numbers"])
    assert again["mixtures"] == found["numbers"]["mixtures"] and again["whole"] == found["numbers"]["whole"]


def test_what_is_finished_is_not_measured_again(model: Path, found: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = found["folder"]
    shutil.copytree(folder / "map", folder / "again")
    for path in sorted((folder / "again" / ".cells").glob("damage-*.json"))[::2]:
        path.unlink()
    (folder / "again" / "record.json").unlink()
    settings = options(folder, "again")
    asked: list[object] = []
    answer = MapJob.answer
    monkeypatch.setattr(MapJob, "answer", lambda job, state, task: (asked.append(task), answer(job, state, task))[1])
    numbers = mapped(str(model), FORMATS, share=0.5, options=settings).numbers
    assert cells_of(numbers) == cells_of(found["numbers"])
    assert 0 < len(asked) < len(list((folder / "again" / ".cells").glob("*.json")))


def test_a_recipe_with_moves_is_measured_in_its_gauge(model: Path, tmp_path: Path) -> None:
    text = write_text(tmp_path / "calibration.txt", words=400)
    recipe = tmp_path / "awq.yaml"
    recipe.write_text(
        GPTQ.replace("TEXT", str(text)).replace("[gptq]", "[awq, rtn]").replace("small-gptq", "small-awq"),
        encoding="utf-8",
    )
    numbers = mapped(
        str(model), ("int4:g32", "int2:g32"), recipe=str(recipe), share=0.5, options=options(tmp_path)
    ).numbers
    assert numbers["controls"]["no_swap"] == 0.0
    damage = {(c["place"], c["format"]): c["kl"] for c in numbers["cells"] if c["view"] == "damage"}
    assert np.isfinite(list(damage.values())).all() and min(damage.values()) > 0
    assert numbers["mixtures"] == []  # where scales move, each mixture would move them otherwise


def test_a_sampled_map_measures_one_block_of_so_many(tmp_path: Path) -> None:
    deep = save_llama(tmp_path / "deep", num_hidden_layers=5)
    result = mapped(str(deep), FORMATS[1:], every=3, share=0.5, rescue=(), options=options(tmp_path))
    numbers = result.numbers
    inside = [place for place in numbers["places"] if place["block"] is not None]
    assert {(place["block"], place["stands_for"]) for place in inside} == {(0, 1), (2, 3), (4, 1)}
    assert sum(len(place["linears"]) for place in inside) == 5 * 7 and numbers["every"] == 3
    assert {cell["place"] for cell in numbers["cells"]} == {place["name"] for place in numbers["places"]}
    assert numbers["controls"]["no_swap"] == 0.0
    found = Prediction(map_of(numbers))
    wholes = [numbers["whole"][format]["kl"] for format in numbers["formats"]]
    for row in numbers["mixtures"]:
        assert wholes[0] < row["kl"] < wholes[-1]
        assert found.expected(row["formats"]).loss == pytest.approx(row["kl"], rel=1e-6)
    assert result.report is not None and "Of every 3 blocks one was measured" in result.report.read_text()
    spent = allocate(str(tmp_path / "map"), "3 bits", options=options(tmp_path, "allocation"))
    ruled = {rule.match for rule in load_recipe(str(tmp_path / "allocation" / "recipe.yaml")).rules}
    together = [{name in ruled for name in place["linears"]} for place in inside]
    assert ruled and all(len(said) == 1 for said in together), "all blocks that a place stands for get its format"
    assert spent.numbers["bits_per_weight"] == pytest.approx(3.0, abs=0.6)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"every": 0}, "--every was given 0"),
        ({"formats": ("int9",)}, "int9"),
        ({"metric": "bleu"}, "--metric was given 'bleu'"),
        ({"by": "head"}, "--by was given 'head'"),
        ({"share": 0.0}, "--share was given 0"),
        ({"rescue": ("int3:g32",)}, "not among the formats"),
        ({"metric": "choices"}, "the evaluation text has nothing"),
        ({"formats": ()}, "names no format"),
    ],
)
def test_bad_input_is_one_sentence(model: Path, tmp_path: Path, changed: dict, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        mapped(str(model), **{"formats": FORMATS, **changed}, options=options(tmp_path))
    assert not (tmp_path / "map").exists()
