"""The whole diagnosis: a fault in, its name, its repair and its price out; bad input in one sentence."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file, save_file

import subeight
from subeight.errors import InputError, ModelError
from subeight.recipes import load_recipe
from tests.verbs import small

DOWN = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def faulty(house, made, tmp_path_factory) -> Path:
    """The rounded checkpoint, with the scales of one linear wrong."""
    directory = tmp_path_factory.mktemp("faulty") / "checkpoint"
    shutil.copytree(made("rtn").directory, directory)
    for path in directory.glob("*.safetensors"):
        tensors = load_file(path)
        if f"{DOWN}.weight_scale" in tensors:
            tensors[f"{DOWN}.weight_scale"] *= 2.5
            save_file(tensors, path, metadata={"format": "pt"})
    return directory


@pytest.fixture(scope="module")
def diagnosed(house, faulty):
    complaint = subeight.Complaint(prompts=str(house.evals), only=("layers",))
    options = house.options(out=house.folder / "diagnosed", command=("subeight", "diagnose", "x"))
    return subeight.diagnose(str(faulty), complaint=complaint, options=options)


def test_the_culprit_is_named_and_the_baseline_guessed(diagnosed) -> None:
    (cause,) = diagnosed.numbers["verdict"]["causes"]
    assert (cause["suspect"], cause["kind"], cause["places"]) == ("layers", "scales", [DOWN])
    assert diagnosed.record.subject["baseline"] == "base"


def test_every_suspect_has_a_finding_with_its_price_and_its_command(diagnosed) -> None:
    findings = diagnosed.numbers["findings"]
    assert [f["suspect"] for f in findings] == ["baseline", "stack", "kernels", "calibration", "layers"]
    assert findings[0]["verdict"] == "cleared"  # examined all the same: the gauge comes from it
    assert {f["verdict"] for f in findings[1:4]} == {"skipped"}
    assert findings[4]["evaluations"] > 2
    assert findings[4]["command"] == "subeight diagnose x --only layers"
    assert len(diagnosed.numbers["verdict"]["untested"]) == 3


def test_the_prescription_is_a_recipe_and_was_measured(diagnosed, house, tmp_path) -> None:
    numbers = diagnosed.numbers
    told = numbers["prescription"]
    assert told["loss_after"] < told["loss_before"]
    assert told["recovered"] == pytest.approx(1 - told["loss_after"] / told["loss_before"])
    assert numbers["verdict"]["bytes_added"] == told["bytes_after"] - told["bytes_before"]
    recipe = load_recipe(numbers["verdict"]["recipe"])
    assert recipe.rules[-1].match == DOWN
    again = subeight.quantize(
        str(house.base), numbers["verdict"]["recipe"], options=house.options(out=tmp_path / "new")
    )
    linear = next(row for row in again.numbers["linears"] if row["name"] == DOWN)
    assert linear["format"] == told["formats"][DOWN]


def test_the_record_is_a_point_with_coordinates_and_samples(diagnosed, made) -> None:
    coordinates = diagnosed.record.coordinates
    assert coordinates.baseline == made("rtn").record.coordinates.baseline
    assert coordinates.evaluation is not None
    rows = subeight.verbs.session.Run.open(diagnosed.directory).read_samples()
    assert len(rows) == diagnosed.numbers["prompts"]
    assert sum(row["loss_repaired"] for row in rows) < sum(row["loss"] for row in rows)
    assert diagnosed.report.is_file()
    assert any(DOWN in line for line in diagnosed.lines)


def test_a_baseline_diagnosed_against_itself_has_nothing(house, tmp_path) -> None:
    options = house.options(out=tmp_path / "out")
    complaint = subeight.Complaint(only=("layers",))
    result = subeight.diagnose(str(house.base), str(house.base), complaint=complaint, options=options)
    assert result.numbers["loss"] == 0.0
    assert result.numbers["verdict"]["causes"] == []
    assert result.numbers["prescription"] is None


def test_two_architectures_are_refused(house, faulty, tmp_path) -> None:
    other = small.save_llama(tmp_path / "other", hidden_size=32)
    with pytest.raises(ModelError, match="not two versions of one model"):
        subeight.diagnose(str(faulty), str(other), options=house.options(out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("complaint", "words"),
    [
        ({"metric": "accuracy"}, "allowed are kl, nll, choices and check:COMMAND"),
        ({"only": ("weather",)}, "allowed are baseline, stack, kernels, calibration, layers"),
        ({"metric": "check:false"}, "fails on all"),
        ({"metric": "choices"}, "no prompt has `choices`"),
    ],
)
def test_bad_input_is_one_sentence(house, faulty, tmp_path, complaint, words) -> None:
    given = subeight.Complaint(**{"prompts": str(house.evals), **complaint})
    with pytest.raises(InputError, match=re.escape(words)):
        subeight.diagnose(str(faulty), str(house.base), complaint=given, options=house.options(out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_prompts_without_text(house, faulty, tmp_path) -> None:
    empty = small.write_rows(tmp_path / "empty.jsonl", [{"text": "  "}])
    given = subeight.Complaint(prompts=str(empty))
    with pytest.raises(InputError):
        subeight.diagnose(str(faulty), str(house.base), complaint=given, options=house.options(out=tmp_path / "out"))


def test_a_checkpoint_that_names_no_baseline(house, faulty, tmp_path) -> None:
    bare = shutil.copytree(faulty, tmp_path / "bare")
    for name in ("record.json", "recipe.yaml", "plan.json", "run.json"):
        (bare / name).unlink(missing_ok=True)
    config = json.loads((bare / "config.json").read_text(encoding="utf-8"))
    (bare / "config.json").write_text(json.dumps({**config, "_name_or_path": ""}), encoding="utf-8")
    with pytest.raises(InputError, match="give --baseline"):
        subeight.diagnose(str(bare), options=house.options(out=tmp_path / "out"))


def test_a_check_command_finds_the_culprit_by_answers(house, faulty, tmp_path) -> None:
    rows = [{**row, "completion": " yes"} for row in small.text_rows(6, words=6)]
    prompts = small.write_rows(tmp_path / "prompts.jsonl", rows)
    complaint = subeight.Complaint(prompts=str(prompts), metric="check:true", only=("layers",))
    options = house.options(out=tmp_path / "out")
    result = subeight.diagnose(str(faulty), str(house.base), complaint=complaint, options=options)
    assert result.numbers["metric"] == "check:true"
    assert result.numbers["loss"] == 0.0


def test_foreign_checkpoints_get_a_recipe_of_what_they_store(house, faulty, tmp_path) -> None:
    bare = shutil.copytree(faulty, tmp_path / "bare")
    for name in ("record.json", "recipe.yaml", "plan.json", "run.json"):
        (bare / name).unlink(missing_ok=True)
    complaint = subeight.Complaint(prompts=str(house.evals), only=("layers",))
    options = house.options(out=tmp_path / "out")
    result = subeight.diagnose(str(bare), str(house.base), complaint=complaint, options=options)
    recipe = yaml.safe_load(Path(result.numbers["verdict"]["recipe"]).read_text(encoding="utf-8"))
    assert recipe["weights"] == "int3:g32:sym"
    assert result.numbers["verdict"]["causes"][0]["places"] == [DOWN]
