"""Whatever a user gets wrong: one sentence on standard error, exit status 2, and nothing half-written."""

import json
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from tests.verbs import small

Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def refuse(run, tmp_path, house):
    """Runs a command that must be refused; returns its one sentence."""

    def call(*words: object, out: str | None = "out", written: bool = False) -> str:
        place = ["--out", tmp_path / out] if out else []
        done = run(*words, *place)
        lines = done.err.splitlines()
        assert done.status == 2, done.err
        assert len(lines) == 1 and lines[0].startswith("subeight: "), done.err
        assert done.out == "" and "Traceback" not in done.err
        assert lines[0].endswith((".", "?", ")")) or len(lines[0].split()) > 6
        if out and not written:
            assert not (tmp_path / out).exists(), "something was left behind"
        return lines[0]

    return call


@pytest.fixture
def broken(house, tmp_path) -> Path:
    """A model of this test's own to break."""
    return Path(shutil.copytree(house.base, tmp_path / "broken"))


def test_missing_model(refuse, tmp_path):
    assert "There is no model at" in refuse("quantize", tmp_path / "missing", "--recipe", "rtn-int4")


def test_directory_without_config(refuse, tmp_path, broken):
    (broken / "config.json").unlink()
    assert "has no config.json" in refuse("quantize", broken, "--recipe", "rtn-int4")


def test_config_that_is_not_json(refuse, broken):
    (broken / "config.json").write_text("{")
    assert "config" in refuse("quantize", broken, "--recipe", "rtn-int4")


def test_missing_shard(refuse, tmp_path):
    sharded = small.save_llama(tmp_path / "sharded", shards=True)
    (gone, *others) = sorted(sharded.glob("*.safetensors"))
    assert others
    gone.unlink()
    assert f"lacks the shard {gone.name}" in refuse("quantize", sharded, "--recipe", "rtn-int4")


def test_truncated_shard(refuse, broken, house):
    path = broken / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    assert "is truncated" in refuse("quantize", broken, "--recipe", house.rtn)
    path.write_bytes(path.read_bytes()[:5])
    assert "is truncated" in refuse("quantize", broken, "--recipe", house.rtn)


def test_tensor_shape_that_is_not_the_configs(refuse, broken, house):
    small.change_tensor(broken, Q, torch.zeros(64, 60))
    assert f"Tensor {Q} has the shape [64, 60]" in refuse("quantize", broken, "--recipe", house.rtn)


def test_tensor_that_is_not_there(refuse, broken, house):
    small.change_tensor(broken, Q, None)
    assert f"lacks the tensor {Q}" in refuse("quantize", broken, "--recipe", house.rtn)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", [Q, "model.layers.1.mlp.down_proj.weight", "model.embed_tokens.weight"])
def test_nan_in_a_weight_names_the_tensor(refuse, broken, house, name, value):
    changed = small.tensor(broken, name)
    changed[1, 2] = value
    small.change_tensor(broken, name, changed)
    assert f"Tensor {name} has 1 values that are NaN or Inf" in refuse("quantize", broken, "--recipe", house.gptq)


def test_nan_is_named_by_every_verb_that_reads_weights(refuse, broken, house):
    changed = small.tensor(broken, Q)
    changed[1, 2] = float("nan")
    small.change_tensor(broken, Q, changed)
    assert Q in refuse("evaluate", broken, "--against", house.base, "--evals", house.evals, "--quiet")
    assert Q in refuse("compare", broken, "--recipes", f"{house.rtn},{house.gptq}", "--evals", house.evals)
    assert Q in refuse("inspect", broken, "--calibration", small.write_text(broken.parent / "long.txt", 6000))


def test_pickle_weights(refuse, broken, house):
    (broken / "model.safetensors").rename(broken / "pytorch_model.bin")
    assert "pickle" in refuse("quantize", broken, "--recipe", house.rtn)


def test_recipe_with_an_unknown_key(refuse, house, tmp_path):
    recipe = small.write_recipe(tmp_path / "r.yaml", small.RTN.replace("methods", "metods"))
    assert "Did you mean 'methods'?" in refuse("quantize", house.base, "--recipe", recipe)


def test_impossible_format(refuse, house, tmp_path):
    recipe = small.write_recipe(tmp_path / "r.yaml", small.RTN.replace("int3:g32", "int9:g32"))
    assert "int9" in refuse("quantize", house.base, "--recipe", recipe)


def test_format_that_the_target_cannot_hold(refuse, house, tmp_path):
    recipe = small.write_recipe(tmp_path / "r.yaml", small.RTN.replace("int3:g32:sym", "int3:g40:sym"))
    assert "dense" in refuse("quantize", house.base, "--recipe", recipe, "--to", "compressed-tensors")


def test_rule_that_matches_nothing(refuse, house, tmp_path):
    text = small.RTN + "rules:\n  - {match: '*.dwn_proj', weights: int8:g32}\n"
    recipe = small.write_recipe(tmp_path / "r.yaml", text)
    assert "*.dwn_proj" in refuse("quantize", house.base, "--recipe", recipe)


def test_recipe_that_quantizes_nothing(refuse, house, tmp_path):
    recipe = small.write_recipe(tmp_path / "r.yaml", "methods: [rtn]\n")
    assert "weights" in refuse("quantize", house.base, "--recipe", recipe)


def test_unknown_recipe_and_missing_recipe_file(refuse, house, tmp_path):
    assert "Did you mean 'gptq-int4'?" in refuse("quantize", house.base, "--recipe", "gptq-int44")
    assert "There is no recipe file" in refuse("quantize", house.base, "--recipe", tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "is empty"), (b"caf\xe9 au lait " * 400, "is not UTF-8"), (b"the cat sat\n", "shorter than one window")],
)
def test_calibration_text_that_cannot_be_used(refuse, house, tmp_path, content, words):
    text = tmp_path / "text.txt"
    text.write_bytes(content)
    assert words in refuse("quantize", house.base, "--recipe", house.gptq, "--calibration", text)


def test_missing_texts(refuse, house, tmp_path):
    gone = tmp_path / "gone.txt"
    assert "gone.txt" in refuse("quantize", house.base, "--recipe", house.gptq, "--calibration", gone)
    assert "gone.txt" in refuse("evaluate", house.base, "--against", house.base, "--evals", gone)


def test_no_disk_space(refuse, house, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(10**6, 10**6 - 500, 500))
    assert "500 bytes free" in refuse("quantize", house.base, "--recipe", house.rtn)
    assert "500 bytes free" in refuse("compare", house.base, "--recipes", house.rtn, "--evals", house.evals)


def test_no_disk_space_for_an_export(refuse, made, monkeypatch):
    source = made("rtn").directory
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(10**6, 10**6 - 500, 500))
    assert "500 bytes free" in refuse("export", source)


@pytest.mark.parametrize("verb", ["quantize", "evaluate", "compare", "export", "inspect"])
def test_output_directory_that_holds_something_else(refuse, house, made, tmp_path, verb):
    words = {
        "quantize": ("quantize", house.base, "--recipe", house.rtn),
        "evaluate": ("evaluate", house.base, "--against", house.base, "--evals", house.evals),
        "compare": ("compare", house.base, "--recipes", house.rtn, "--evals", house.evals),
        "export": ("export", made("rtn").directory),
        "inspect": ("inspect", house.base, "--calibration", small.write_text(tmp_path / "long.txt", 6000)),
    }[verb]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    assert "holds something else (thesis.tex)" in refuse(*words, written=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]
    assert (tmp_path / "out" / "thesis.tex").read_text() == "mine"


def test_output_that_is_a_file(refuse, house, tmp_path):
    (tmp_path / "out").write_text("mine")
    assert "is a file" in refuse("quantize", house.base, "--recipe", house.rtn, written=True)
    assert (tmp_path / "out").read_text() == "mine"


def test_unknown_device_and_dtype(refuse, house):
    assert "--device was given 'tpu9'" in refuse("quantize", house.base, "--recipe", house.rtn, "--device", "tpu9")
    assert "--dtype was given 'int3'" in refuse("quantize", house.base, "--recipe", house.rtn, "--dtype", "int3")


@pytest.mark.parametrize("size", ["lots", "2XB", "-1", "0"])
def test_max_memory_that_is_no_size(refuse, house, size):
    sentence = refuse("quantize", house.base, "--recipe", house.rtn, "--max-memory", size)
    assert "--max-memory was given" in sentence and "2GB" in sentence


def test_options_that_do_not_exist_or_are_out_of_range(refuse, house):
    assert "--recpie" in refuse("quantize", house.base, "--recpie", "x")
    assert "--threads" in refuse("quantize", house.base, "--threads", "0")
    assert "--eval-tokens" in refuse("evaluate", house.base, "--against", house.base, "--eval-tokens", "1")
    assert "quantise" in refuse("quantise", house.base, out=None)
    assert "'onnx'" in refuse("quantize", house.base, "--recipe", house.rtn, "--to", "onnx")
    assert "tensorrt" in refuse("quantize", house.base, "--recipe", house.rtn, "--engine", "tensorrt")


def test_another_vocabulary(refuse, house, tmp_path):
    other = small.save_llama(tmp_path / "other", vocab_size=300)
    assert "vocabulary of 300" in refuse("evaluate", other, "--against", house.base, "--evals", house.evals)


def test_another_baseline_and_a_misspelt_coordinate(refuse, house, made, tmp_path):
    other = small.save_llama(tmp_path / "other", seed=1)
    words = ("evaluate", made("rtn").directory, "--against", other, "--evals", house.evals)
    assert "differ in baseline" in refuse(*words)
    assert "did you mean baseline?" in refuse(*words, "--across", "basline")


def test_export_of_an_unquantized_model(refuse, house):
    assert "is not quantized" in refuse("export", house.base)


def test_report_without_records(refuse, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "is not a run directory" in refuse("report", empty, out="page.html")
    assert "cannot be read" in refuse("report", tmp_path / "gone", out="page.html")
    (empty / "record.json").write_text(json.dumps({"schema": 99}))
    assert "schema 99" in refuse("report", empty / "record.json", out="page.html")


def test_compare_of_nothing(refuse, house):
    assert "No recipe was given" in refuse("compare", house.base, "--recipes", ", ,")


def test_an_interrupted_directory_survives_bad_input_in_its_own_command(refuse, house, tmp_path, broken, run):
    """What a run began is only taken back by the call that began it."""
    assert run("quantize", house.base, "--recipe", house.rtn, "--out", tmp_path / "out").status == 0
    before = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert "another model" in refuse("quantize", house.base, "--recipe", house.gptq, written=True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == before
