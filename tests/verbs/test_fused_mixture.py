"""A mixture whose checkpoint stores all experts as one tensor (gpt-oss), through quantize and evaluate."""

from pathlib import Path

import pytest
import transformers as hf

from subeight import evaluate, quantize
from subeight.models.model import Model
from tests.models.families import COMMON, build, save
from tests.verbs.small import GPTQ, tokenizer, write_recipe


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    config = hf.GptOssConfig(
        **{**COMMON, "vocab_size": 320},
        head_dim=16, num_local_experts=4, num_experts_per_tok=2, layer_types=["full_attention"] * 2,
        max_position_embeddings=128, bos_token_id=0, eos_token_id=1, pad_token_id=None,
    )  # fmt: skip
    directory = save(build(config), tmp_path_factory.mktemp("fused") / "base")
    tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def made(base: Path, house, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    recipe = write_recipe(folder / "r.yaml", GPTQ.replace("seed: 0", "seed: 0, per_expert: 100"), house.calibration)
    return quantize(str(base), str(recipe), to="compressed-tensors", options=house.options(out=folder / "out"))


def test_its_experts_are_counted_and_fed(made) -> None:
    rows = made.numbers["experts"]["rows"]
    assert [row["expert"] for row in rows[:4]] == [f"model.layers.0.mlp.experts.{number}" for number in range(4)]
    assert made.numbers["experts"]["added"] > 0
    assert all(row["tokens"] >= 100 for row in rows)
    assert "stored one by one" in made.numbers["parity"]["skipped"]
    experts = [row for row in made.numbers["linears"] if ".experts." in row["name"]]
    assert len(experts) == 2 * 4 * 3
    assert all(row["format"] == "int4:g32:sym" and row["output_error"] < 0.1 for row in experts)
    assert all("vllm" in row["runs_in"] and "transformers" not in row["runs_in"] for row in experts)


def test_evaluate_reads_it_back_and_judges_every_expert(made, base: Path, house, tmp_path: Path) -> None:
    checkpoint = Model(str(made.directory))
    assert checkpoint.codes is not None and "model.layers.1.mlp.experts.2.gate_proj" in checkpoint.codes
    numbers = evaluate(str(made.directory), str(base), options=house.options(out=tmp_path / "e")).numbers
    assert 0 < numbers["kl"] < 0.5
    errors = [row["output_error"] for row in numbers["experts"]["rows"]]
    assert len(errors) == 8 and all(0 < error < 0.2 for error in errors if error is not None)
    assert 0 <= numbers["experts"]["changed"] < 0.5


def test_its_default_is_a_dense_checkpoint_that_plain_transformers_loads(base: Path, house, tmp_path: Path) -> None:
    result = quantize(str(base), str(house.rtn), options=house.options(out=tmp_path / "dense"))
    assert result.record.settings["to"] == "dense"
    assert result.numbers["parity"]["max_abs"] <= result.numbers["parity"]["bound"]
