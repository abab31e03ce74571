"""`allocate` on a tiny model with a hand-made map: the recipe, the record, what it refuses, and the verification."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from subeight.errors import InputError, SubeightError
from subeight.evals.stats import Interval
from subeight.formats import Format
from subeight.map.interactions import Pair
from subeight.map.mapfile import read_map
from subeight.map.places import kept_of, places_of
from subeight.models.model import Model
from subeight.recipes import load_recipe, resolve
from subeight.records import Coordinates, Run
from subeight.verbs import verification
from subeight.verbs.allocate import allocate
from subeight.verbs.options import Options
from subeight.verbs.quantize import quantize
from subeight.verbs.session import Session
from tests.map import records
from tests.verbs.small import save_llama

FORMATS = ("int8:g32:sym", "int4:g32:sym", "int2:g32:sym")
BASE = dict(zip(FORMATS, (1e-4, 5e-3, 0.1), strict=True))
TOKENS = 400  # of the evaluation text


def lost(place: dict, format: str) -> float:
    return BASE[format] * (1 + len(place["name"]) % 5)


def hand_made(folder: Path, house, by: str = "group", loss=lost, **more) -> Path:
    """A map of the house's model; its text can be made again, as `--verify` must."""
    model = Model(str(house.base))
    session = Session("map", house.options(eval_window=24))
    text = session.evaluation(model, tokens=TOKENS)
    rows = [place.to_dict([Format.parse(format) for format in FORMATS]) for place in places_of(model, by)]
    content = records.numbers(rows, loss, formats=FORMATS, by=by)
    content["kept"] = kept_of(model)
    samples = [sample for sample in text.samples if sample.count]
    hard = np.ones(len(samples))
    content["samples"] = [
        {"document": sample.document, "category": sample.category, "tokens": float(sample.count)} for sample in samples
    ]
    for format in FORMATS:
        content["difficulty"][format] = hard.tolist()
        content["whole"][format]["samples"] = (hard * content["whole"][format]["kl"]).tolist()
    given = {
        "coordinates": Coordinates(baseline=model.coordinate, evaluation=text.hash, stack="s", recipe="m"),
        "subject": {"model": model.label, "paths": {"model": str(house.base)}},
        "settings": {
            "calibration": None, "evals": [str(house.evals)], "eval_tokens": text.tokens, "eval_window": 24,
            "dtype": "float32", "eval_cap": TOKENS,
        },
    }  # fmt: skip
    return records.write(folder, content, **{**given, **more})


@pytest.fixture(scope="module")
def mapped(house, tmp_path_factory) -> Path:
    return hand_made(tmp_path_factory.mktemp("map") / "map", house)


def options(out: Path) -> Options:
    return Options(out=out, quiet=True, threads=1)


def test_the_recipe_is_an_ordinary_one_and_meets_the_budget(house, mapped: Path, tmp_path: Path) -> None:
    result = allocate(str(mapped), "5 bits", engine="vllm", options=options(tmp_path / "out"))
    numbers, path = result.numbers, tmp_path / "out" / "recipe.yaml"
    assert numbers["recipe"] == str(path) and result.report.is_file()
    plan = resolve(load_recipe(str(path)), Model(str(house.base)).linears, engine="vllm")
    assert 4.5 < plan.bits_per_weight <= 5.0
    assert (numbers["bits_per_weight"], numbers["bytes"]) == (plan.bits_per_weight, plan.bytes)
    got = {choice["place"]: choice["format"] for choice in numbers["choices"]}
    for place in read_map(mapped).places:
        for name in place.linears:
            weights = plan.site(name).weights
            assert (str(weights) if weights else None) == got[place.name]
    assert result.record.coordinates.recipe == plan.fingerprint
    assert result.record.coordinates.baseline == Model(str(house.base)).coordinate
    assert len(set(got.values()) - {None}) > 1, "an allocation that mixes nothing tests nothing"
    assert numbers["predicted"]["kl_ci"][0] <= numbers["predicted"]["kl"] <= numbers["predicted"]["kl_ci"][1]
    assert numbers["verified"] is None and numbers["map"]["hash"] == read_map(mapped).hash
    assert len(numbers["front"]) > 5 and {rival["name"] for rival in numbers["rivals"]} > set(FORMATS)


def test_what_is_kept_is_kept_in_the_recipe(mapped: Path, tmp_path: Path) -> None:
    numbers = allocate(
        str(mapped), "9 bits", pins=["*.1.mlp.down_proj=keep", "lm_head=int8"], options=options(tmp_path / "out")
    ).numbers
    rules = {rule.match: rule for rule in load_recipe(numbers["recipe"]).rules}
    assert rules["model.layers.1.mlp.down_proj"].keep
    assert rules["lm_head"].weights == "int8:g32:sym"
    assert "model.embed_tokens" not in rules


def test_every_pin_has_its_price(mapped: Path, tmp_path: Path) -> None:
    pins, forbids = ["*.down_proj=int2"], ["*.o_proj=int4"]
    numbers = allocate(str(mapped), "5 bits", pins=pins, forbids=forbids, options=options(tmp_path / "out")).numbers
    assert numbers["pins"] == pins and numbers["forbids"] == forbids
    pin, forbid = numbers["price_of_pins"]
    assert pin["pin"] == pins[0] and pin["price"] > 0 and forbid["forbid"] == forbids[0]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "The price of pins" in page and "pinned by" in page


def test_what_an_engine_fuses_gets_one_format(house, tmp_path: Path) -> None:
    folder = hand_made(tmp_path / "map", house, by="linear")
    numbers = allocate(str(folder), "5 bits", engine="vllm", options=options(tmp_path / "out")).numbers
    got = {choice["place"]: choice["format"] for choice in numbers["choices"]}
    for block in range(2):
        assert len({got[f"model.layers.{block}.self_attn.{x}_proj"] for x in "qkv"}) == 1
        assert len({got[f"model.layers.{block}.mlp.{x}_proj"] for x in ("gate", "up")}) == 1


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"budget": "few"}, "--budget was given 'few'"),
        ({"engine": "vlm"}, "'vlm' is not an engine.*Did you mean 'vllm'"),
        ({"pins": ["*.down_proj=int5"]}, "--pin was given the format 'int5'"),
        ({"forbids": ["nowhere=int4"]}, "matches no place"),
        ({"budget": "32 bits"}, "keeps every place as it is"),
        ({"map": "/nowhere"}, "cannot be read"),
    ],
)
def test_bad_input_is_one_sentence(mapped: Path, tmp_path: Path, given: dict, sentence: str) -> None:
    asked = {"map": str(mapped), "budget": "5 bits", **given}
    with pytest.raises(InputError, match=sentence) as caught:
        allocate(asked.pop("map"), asked.pop("budget"), **asked, options=options(tmp_path / "out"))
    assert caught.value.exit_status == 2 and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_an_infeasible_budget_is_a_no_and_names_the_nearest(mapped: Path, tmp_path: Path) -> None:
    with pytest.raises(SubeightError, match="infeasible") as caught:
        allocate(str(mapped), "2 bits", options=options(tmp_path / "out"))
    assert caught.value.exit_status == 1 and not (tmp_path / "out").exists()
    nearest = re.search(r"'([\d.]+ bits)'", str(caught.value))[1]
    numbers = allocate(str(mapped), nearest, options=options(tmp_path / "out")).numbers
    assert numbers["bits_per_weight"] <= float(nearest.split()[0])


def test_a_map_of_another_model_is_refused(mapped: Path, tmp_path: Path) -> None:
    other = save_llama(tmp_path / "other", seed=5)
    with pytest.raises(InputError, match="was measured on another model"):
        allocate(str(mapped), "5 bits", model=str(other), options=options(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_map_cut_off_in_the_middle_is_refused(tmp_path: Path) -> None:
    Run.create(tmp_path / "map", "map", {})
    with pytest.raises(InputError, match="run the same map command again, it continues"):
        allocate(str(tmp_path / "map"), "5 bits", options=options(tmp_path / "out"))


def test_verified_on_the_maps_own_text_and_on_other(mapped: Path, tmp_path: Path) -> None:
    result = allocate(str(mapped), "5 bits", verify=True, options=options(tmp_path / "out"))
    seen = result.numbers["verified"]
    assert seen["kl"] > 0 and seen["kl_ci"][0] <= seen["kl"] <= seen["kl_ci"][1]
    low, high = result.numbers["predicted"]["kl_ci"]
    assert seen["within"] == (low <= seen["kl"] <= high)
    assert seen["ratio"] == pytest.approx(seen["kl"] / result.numbers["predicted"]["kl"])
    assert seen["heldout"]["kl"] > 0 and seen["heldout"]["kl"] != seen["kl"]
    assert len(seen["pairs"]) == 15 and all(pair["together"] >= 0 for pair in seen["pairs"])
    assert seen["pairs"][0]["interaction"] == pytest.approx(
        seen["pairs"][0]["together"] - sum(seen["pairs"][0]["alone"])
    )
    made = Model(seen["checkpoint"])
    assert made.codes is not None
    again = allocate(str(mapped), "5 bits", verify=True, options=options(tmp_path / "out")).numbers["verified"]
    assert again["kl"] == seen["kl"]


def test_a_budget_in_milliseconds_is_measured_before_and_after(house, mapped: Path, tmp_path: Path) -> None:
    asked = options(tmp_path / "out")
    result = allocate(str(mapped), "latency 1000 ms", context=16, verify=True, forbids=("*=keep",), options=asked)
    told = result.numbers["latency"]
    assert 0 < told["rest_seconds"] < told["seconds"] < 1 and told["context"] == 16
    assert set(read_map(mapped).formats) >= {choice["format"] for choice in result.numbers["choices"]}
    assert result.numbers["verified"]["seconds"] > 0
    assert any("A token after 16 others" in line for line in result.lines)
    with pytest.raises(SubeightError, match="the nearest that can be met is 'latency"):
        allocate(str(mapped), "latency 0.0001 ms", context=16, options=replace(asked, out=tmp_path / "other"))


def test_a_context_longer_than_the_models_is_refused(mapped: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--context 999999 leaves no room"):
        allocate(str(mapped), "latency 9 ms", context=999_999, options=options(tmp_path / "out"))


def test_a_text_that_changed_cannot_verify(house, tmp_path: Path) -> None:
    point = Coordinates(baseline=Model(str(house.base)).coordinate, evaluation="another")
    folder = hand_made(tmp_path / "map", house, coordinates=point)
    with pytest.raises(InputError, match="cannot be made again"):
        allocate(str(folder), "5 bits", verify=True, options=options(tmp_path / "out"))


def test_a_dry_run_decides_and_writes_nothing(mapped: Path, tmp_path: Path) -> None:
    result = allocate(str(mapped), "5 bits", options=replace(options(tmp_path / "out"), dry_run=True))
    assert result.numbers["choices"] and result.directory is None and not (tmp_path / "out").exists()
    assert "expected loss" in result.lines[0]


def test_a_recipe_for_vllm_has_one_scheme_per_fused_set_and_loads_in_plain_transformers(
    house, mapped: Path, tmp_path: Path
) -> None:
    allocate(str(mapped), "5 bits", engine="vllm", options=options(tmp_path / "out"))
    recipe = str(tmp_path / "out" / "recipe.yaml")
    made = quantize(str(house.base), recipe, engine="vllm", options=house.options(out=tmp_path / "made"))
    parity = made.numbers["parity"]  # of the checkpoint in a process that has only transformers
    assert 0 <= parity["max_abs"] < parity["bound"] and parity["tokens"] > 0
    config = json.loads((tmp_path / "made" / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "compressed-tensors"
    schemes = {
        target: (group["weights"]["num_bits"], group["weights"]["group_size"])
        for group in config["config_groups"].values()
        for target in group["targets"]
    }
    assert len(set(schemes.values())) > 1
    for block in range(2):
        root = f"model.layers.{block}"
        for fused in ([f"{root}.self_attn.{x}_proj" for x in "qkv"], [f"{root}.mlp.{x}_proj" for x in ("gate", "up")]):
            assert len({schemes.get(name) for name in fused}) == 1


def test_decided_again_with_the_pairs_and_the_better_one_stays(
    mapped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two places are said to hurt each other more than all others together: both get more bits, and it is measured."""

    def told(session: Session, question: object, tested: verification._Tested) -> list[Pair]:
        formats = tested.decision.formats
        a, b = sorted((name for name, format in formats.items() if format == FORMATS[-1]), key=len)[:2]
        return [Pair(a, b, (0.1, 0.1), 9.2, Interval(9.0, 8.0, 10.0, 40, "t"))]

    monkeypatch.setattr(verification, "_pairs", told)
    result = allocate(str(mapped), "4 bits", verify=True, options=options(tmp_path / "out"))
    seen = result.numbers["verified"]
    corrected, pair = seen["corrected"], seen["pairs"][0]
    moved = {change["place"]: (change["from"], change["to"]) for change in corrected["changes"]}
    assert {pair["a"], pair["b"]} <= set(moved) and all(moved[pair[x]][0] == FORMATS[-1] for x in "ab")
    assert corrected["taken"] == (corrected["kl"] < corrected["before"]["kl"])
    assert seen["kl"] == min(corrected["kl"], corrected["before"]["kl"])
    assert seen["checkpoint"].endswith("-corrected") == corrected["taken"]
    rules = {rule.match: rule.weights for rule in load_recipe(result.numbers["recipe"]).rules}
    assert result.numbers["bits_per_weight"] <= 4 and rules
    doubts = {choice["place"]: " ".join(choice["doubts"]) for choice in result.numbers["choices"]}
    assert all("strong interaction: with" in doubts[pair[x]] for x in "ab")
    assert any("Allocated again with the pairs" in line for line in result.lines)
