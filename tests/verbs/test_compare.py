import pytest

from subeight import compare, evaluate
from subeight.errors import ModelError, RecipeError, RecordError
from subeight.records import Record, Run
from tests.verbs import small

pytestmark = pytest.mark.usefixtures("no_check")
MEASURES = ("kl", "ppl", "top1", "kl_p99", "tokens", "bits_per_weight", "bytes")


@pytest.fixture(scope="module")
def compared(house):
    from tests.verbs.conftest import parity, unchecked

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parity, "check", unchecked)
        options = house.options(out=house.folder / "compared")
        return compare(str(house.base), [str(house.gptq), str(house.rtn)], options=options)


def test_rows_are_what_quantize_and_evaluate_say(house, made, compared, tmp_path):
    for row, name in zip(compared.numbers["rows"], ("gptq", "rtn"), strict=True):
        options = house.options(out=tmp_path / name)
        alone = evaluate(str(made(name).directory), str(house.base), options=options)
        assert row["recipe"] == f"small-{name}"
        assert {key: row[key] for key in MEASURES} == {key: alone.numbers[key] for key in MEASURES}
        own = Record.read(row["checkpoint"])
        assert own.kind == "quantize"
        assert own.coordinates == made(name).record.coordinates
        for mine, theirs in zip(own.numbers["linears"], made(name).numbers["linears"], strict=True):
            assert mine["weight_error"] == theirs["weight_error"]
            assert mine["output_error"] == theirs["output_error"]


def test_the_better_one_is_named_with_a_paired_interval(compared):
    (pair,) = compared.numbers["pairs"]
    assert (pair["a"], pair["b"]) == ("small-gptq", "small-rtn")
    low, high = pair["kl_difference_ci"]
    assert low < pair["kl_difference"] < high < 0
    assert compared.numbers["best"] == "small-gptq"
    assert compared.lines == (compared.numbers["why"],), "both round and do nothing else: no strategy is contested"


def test_the_run_holds_the_closest_record_and_all_samples(compared):
    run = Run.open(compared.directory)
    assert [record.kind for record in run.records()] == ["compare", "quantize"]
    assert run.records()[1].subject["recipe"] == "small-gptq"
    for row in compared.numbers["rows"]:
        assert Record.read(row["checkpoint"]).kind == "quantize"
    assert sum(row["tokens"] for row in run.read_samples("small-rtn")) == compared.numbers["rows"][1]["tokens"]
    assert compared.record.coordinates.recipe is None, "the recipe is what moves"
    assert (
        compared.record.coordinates.calibration
        == Record.read(compared.numbers["rows"][0]["checkpoint"]).coordinates.calibration
    )
    assert not list(compared.directory.rglob(".blocks"))


def test_the_same_command_again_returns_what_is_there(house, compared):
    options = house.options(out=compared.directory)
    again = compare(str(house.base), [str(house.gptq), str(house.rtn)], options=options)
    assert again.record == compared.record


def test_a_candidate_of_the_comparison_can_be_evaluated_and_knows_its_baseline(house, compared, tmp_path):
    other = small.save_llama(tmp_path / "other", seed=1)
    with pytest.raises(RecordError, match="baseline"):
        evaluate(compared.numbers["rows"][0]["checkpoint"], str(other), options=house.options(out=tmp_path / "out"))


def test_shared_statistics_give_the_rows_of_separate_exact_recipes(house, tmp_path):
    """Two recipes that read statistics, together in one pass, against each alone with `tap: exact`."""
    text = {
        "gptq": small.GPTQ,
        "awq": small.GPTQ.replace("small-gptq", "small-awq").replace("[gptq]", "[awq, rtn]"),
    }
    together, alone = [], []
    for name, recipe in text.items():
        exact = recipe.replace("name: ", "name: exact-") + "tap: exact\n"
        together.append(str(small.write_recipe(tmp_path / f"{name}.yaml", recipe, house.calibration)))
        alone.append(str(small.write_recipe(tmp_path / f"exact-{name}.yaml", exact, house.calibration)))
    result = compare(str(house.base), together, shared=True, options=house.options(out=tmp_path / "shared"))
    for row, path in zip(result.numbers["rows"], alone, strict=True):
        single = compare(str(house.base), [path], options=house.options(out=tmp_path / f"out-{row['recipe']}"))
        (other,) = single.numbers["rows"]
        assert other["recipe"] == f"exact-{row['recipe']}"
        assert other["plan"] == row["plan"]
        assert {key: row[key] for key in MEASURES} == {key: other[key] for key in MEASURES}
    assert result.record.settings["statistics"] == "one pass of the baseline, shared"
    (verdict,) = result.numbers["strategies"]
    assert verdict["strategies"] == {"small-gptq": "rounded (gptq)", "small-awq": "moved (awq), rounded (rtn)"}
    assert result.lines == (result.numbers["why"], verdict["why"])
    said = "The x-ray" if verdict["best"] else "no outlier strategy is set apart"
    assert said in verdict["why"]


def test_recipes_that_cannot_tell_apart_name_no_winner(house, tmp_path):
    twin = small.write_recipe(tmp_path / "twin.yaml", small.RTN.replace("small-rtn", "twin"))
    result = compare(str(house.base), [str(house.rtn), str(twin)], options=house.options(out=tmp_path / "out"))
    assert result.numbers["pairs"][0]["kl_difference"] == 0.0
    assert result.numbers["best"] is None
    assert "cannot be told from" in result.numbers["why"]


def test_recipes_that_saw_other_text_are_not_compared_unless_it_is_meant(house, tmp_path):
    other = small.write_recipe(
        tmp_path / "other.yaml",
        small.GPTQ.replace("small-gptq", "other").replace("seed: 0", "seed: 1"),
        house.calibration,
    )
    recipes = [str(house.gptq), str(other), str(house.rtn)]
    with pytest.raises(RecordError, match=r"differ in calibration .*--across calibration"):
        compare(str(house.base), recipes, options=house.options(out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    meant = house.options(out=tmp_path / "out", across=("calibration",), eval_tokens=200)
    result = compare(str(house.base), recipes, options=meant)
    assert result.record.coordinates.calibration is None
    assert any("calibration" in warning for warning in result.record.warnings)


def test_a_dry_run_writes_nothing(house, tmp_path, monkeypatch):
    monkeypatch.setattr("subeight.models.model._hash_files", None)
    options = house.options(out=tmp_path / "out", dry_run=True)
    result = compare(str(house.base), [str(house.gptq), str(house.rtn)], options=options)
    assert set(result.numbers["predicted"]) == {"small-gptq", "small-rtn"}
    assert "small-gptq:" in result.lines and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("recipes", "message"),
    [
        ([], "No recipe was given"),
        (["rtn-int4", "rtn-int4"], "not all different"),
        (["name: ../../evil"], "cannot name a directory"),
    ],
)
def test_recipes_that_cannot_be_compared(house, tmp_path, recipes, message):
    names = []
    for number, text in enumerate(recipes):
        if text.startswith("name:"):
            text = str(small.write_recipe(tmp_path / f"{number}.yaml", small.RTN.replace("name: small-rtn", text)))
        names.append(text)
    with pytest.raises(RecipeError, match=message):
        compare(str(house.base), names, options=house.options(out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_quantized_model_is_no_baseline(house, made):
    with pytest.raises(ModelError, match="quantized already"):
        compare(str(made("rtn").directory), [str(house.rtn)], options=house.options())


def test_what_compressed_tensors_cannot_hold_is_kept_our_own_way_and_marked(house, tmp_path):
    nf4 = small.write_recipe(
        tmp_path / "nf4.yaml", small.RTN.replace("int3:g32:sym", "nf4:g32").replace("-rtn", "-nf4")
    )
    result = compare(str(house.base), [str(nf4)], options=house.options(out=tmp_path / "out", eval_tokens=200))
    (row,) = result.numbers["rows"]
    assert row["stored"] == "subeight"
    assert row["bits_per_weight"] == pytest.approx(4.5)
    assert row["kl"] > 0
