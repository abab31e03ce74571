import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from subeight import InputError, quantize
from subeight.errors import ModelError, OutputError, ParityError
from subeight.models.model import Model
from subeight.recipes import load_recipe, resolve
from subeight.verbs import parity
from subeight.verbs.planning import _forwards
from tests.verbs import small

pytestmark = pytest.mark.usefixtures("no_check")


def test_the_record_says_what_was_done(house, made):
    result = made("gptq")
    record = json.loads((result.directory / "record.json").read_text())
    assert record["kind"] == "quantize"
    assert record["numbers"]["bits_per_weight"] == 4.5
    assert len(record["numbers"]["linears"]) == 14 + 2  # seven in each block, the embeddings and the head
    inside = [row for row in record["numbers"]["linears"] if row["block"] is not None]
    assert all(row["format"] == "int4:g32:sym" and 0 < row["weight_error"] < 0.2 for row in inside)
    assert all(0 < row["output_error"] < 0.2 for row in inside)
    assert record["settings"]["calibration"]["source"] == str(house.calibration)
    assert (result.directory / "report.html").is_file()
    assert not (result.directory / ".blocks").exists()


def test_coordinates(house, made):
    gptq, rtn = made("gptq").record.coordinates, made("rtn").record.coordinates
    assert gptq.baseline == rtn.baseline
    assert gptq.stack == rtn.stack
    assert gptq.recipe != rtn.recipe
    assert gptq.calibration is not None
    assert rtn.calibration is None, "plain rounding reads no text"
    assert gptq.evaluation is None


def test_calibration_and_seed_change_their_coordinate_and_not_the_recipe(house, made, tmp_path):
    other = small.write_text(tmp_path / "other.txt", seed=1)
    options = house.options(out=tmp_path / "other", calibration=str(other))
    text = quantize(str(house.base), str(house.gptq), options=options).record
    seeded = quantize(str(house.base), str(house.gptq), options=house.options(out=tmp_path / "s", seed=3)).record
    first = made("gptq").record
    assert text.settings["calibration"]["source"] == str(other)
    assert (seeded.settings["seed"], seeded.settings["calibration"]["seed"]) == (3, 3)
    assert len({first.coordinates.calibration, text.coordinates.calibration, seeded.coordinates.calibration}) == 3
    assert first.coordinates.recipe == text.coordinates.recipe == seeded.coordinates.recipe


def test_a_dense_checkpoint_holds_the_rounded_weights(house, tmp_path):
    result = quantize(str(house.base), str(house.rtn), to="dense", options=house.options(out=tmp_path / "out"))
    model = AutoModelForCausalLM.from_pretrained(result.directory, dtype=torch.float32)
    base = load_file(house.base / "model.safetensors")
    rows = {row["name"]: row for row in result.numbers["linears"]}
    for name in ("model.layers.1.mlp.up_proj", "model.layers.0.self_attn.v_proj"):
        loaded, weight = model.get_submodule(name).weight.detach(), base[f"{name}.weight"]
        assert rows[name]["weight_error"] == pytest.approx(float((loaded - weight).norm() / weight.norm()), rel=1e-5)
        assert len(loaded[0, :32].unique()) <= 8, "a group of int3 has eight values"
    assert torch.equal(model.lm_head.weight, base["lm_head.weight"])


def test_the_same_command_again_returns_what_is_there(house, made):
    first = made("gptq")
    before = {path.name: path.stat().st_mtime_ns for path in first.directory.glob("*.safetensors")}
    again = quantize(str(house.base), str(house.gptq), options=house.options(out=first.directory))
    assert again.record == first.record
    assert "nothing was done again" in again.lines[0]
    assert before == {path.name: path.stat().st_mtime_ns for path in first.directory.glob("*.safetensors")}


def test_another_question_in_the_same_directory_is_refused(house, made):
    with pytest.raises(OutputError, match="another model, recipe or settings"):
        quantize(str(house.base), str(house.rtn), options=house.options(out=made("gptq").directory))


def test_a_dry_run_shows_the_plan_of_a_checkpoint_whose_weights_are_garbage(house, tmp_path):
    copied = small.save_llama(tmp_path / "garbage")
    path = copied / "model.safetensors"
    content = bytearray(path.read_bytes())
    begin = 8 + int.from_bytes(content[:8], "little")
    content[begin:] = b"\xff" * (len(content) - begin)  # every float32 is a NaN
    path.write_bytes(content)
    moves = small.write_recipe(tmp_path / "moves.yaml", small.GPTQ.replace("[gptq]", "[awq, gptq]"), house.calibration)
    result = quantize(str(copied), str(moves), options=house.options(out=tmp_path / "out", dry_run=True))
    sites = result.numbers["plan"]["sites"]
    assert {site["name"] for site in sites} >= {"model.layers.0.self_attn.q_proj", "lm_head"}
    assert all(site["reason"] for site in sites)
    assert result.numbers["bits_per_weight"] == 4.5
    assert {"seconds", "memory_bytes", "disk_bytes"} == result.numbers["predicted"].keys()
    assert result.directory is None and not (tmp_path / "out").exists()
    with pytest.raises(ModelError, match="NaN"):
        quantize(str(copied), str(moves), options=house.options(out=tmp_path / "out"))
    assert not (tmp_path / "out").exists(), "what was begun is gone"


def test_a_dry_run_opens_no_weight(house, monkeypatch):
    def refused(*_args):
        raise AssertionError("a weight was read")

    monkeypatch.setattr("subeight.models.read.safetensors.StoredTensor.read", refused)
    monkeypatch.setattr("subeight.models.model._hash_files", refused)
    options = house.options(dry_run=True, calibration="self")
    result = quantize(str(house.base), str(house.gptq), options=options)
    assert result.record.coordinates.recipe is not None


def test_predicted_disk_is_what_is_written(house, made):
    for name in ("gptq", "rtn"):
        result = made(name)
        stored = sum(path.stat().st_size for path in result.directory.glob("*.safetensors"))
        assert result.numbers["predicted"]["disk_bytes"] == pytest.approx(stored, rel=0.15)


def test_a_checkpoint_that_computes_something_else_is_no_success(house, tmp_path, monkeypatch):
    def wrong(*_args, **_options):
        raise ParityError("the logits differ")

    monkeypatch.setattr(parity, "check", wrong)
    with pytest.raises(ParityError):
        quantize(str(house.base), str(house.rtn), options=house.options(out=tmp_path / "out"))
    assert not (tmp_path / "out" / "record.json").exists()


def test_a_quantized_model_is_not_quantized_again(house, made):
    with pytest.raises(ModelError, match="quantized already"):
        quantize(str(made("rtn").directory), str(house.rtn), options=house.options())


def test_a_full_precision_model_too_large_to_load_whole_is_not_checked_and_says_so(house, tmp_path):
    options = house.options(out=tmp_path / "out", max_memory=10_000)
    result = quantize(str(house.base), str(house.rtn), options=options)
    assert "10,000 are allowed" in result.numbers["parity"]["skipped"]


def test_own_text_is_a_calibration_of_its_own(house, made, tmp_path):
    recipe = small.write_recipe(tmp_path / "own.yaml", small.GPTQ.replace("length: 32", "length: 8"))
    options = house.options(out=tmp_path / "out", calibration="self")
    record = quantize(str(house.base), str(recipe), options=options).record
    assert record.settings["calibration"]["source"] == "self"
    assert record.coordinates.calibration not in (None, made("gptq").record.coordinates.calibration)


def test_a_misspelt_coordinate_is_refused_at_once(house):
    with pytest.raises(InputError, match="did you mean baseline"):
        quantize(str(house.base), str(house.rtn), options=house.options(across=("baselin",)))


def test_what_is_tuned_is_predicted_to_take_its_time(house, tmp_path):
    """By the count of passes, since the rate of the machine changes: signround and distil go through the text again."""
    found = {}
    for name, methods in (
        ("gptq", "gptq"),
        ("tuned", "{signround: {steps: 50}}"),
        ("both", "{signround: {steps: 50}}, distil"),
    ):
        text = small.RTN.replace("methods: [rtn]", f"methods: [{methods}]").replace("-rtn", f"-{name}")
        recipe = load_recipe(str(small.write_recipe(tmp_path / f"{name}.yaml", text)))
        found[name] = _forwards(resolve(recipe, Model(house.base).linears), recipe.calibration.sequences)
    assert found["gptq"] == (3.5, 0.0)
    steps = 50 * 4 * 3 / load_recipe(str(tmp_path / "tuned.yaml")).calibration.sequences
    assert found["tuned"] == (pytest.approx(5.5 + steps), 0.0)
    blocks, head = found["both"]
    assert blocks == pytest.approx(5.5 + steps + head) and head > 12
