"""What computes, on a GPU, on a tiny model: it runs, and what is exact on both devices is what the CPU says."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from subeight import Options, Result, bench, diagnose, evaluate, generate, inspect, kv, quantize, train_qlora
from subeight import map as map_model
from subeight.train.adapters import LoraShape
from subeight.train.qlora import Course
from subeight.verbs.advise import advise
from subeight.verbs.compare import compare
from subeight.verbs.learning import Asked
from subeight.verbs.train_qat import train_qat
from subeight.verbs.train_qlora import Material
from tests.verbs import small

DEVICE = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]
WHOLE = """name: whole
weights: int3:g32
methods: [awq, {signround: {steps: 6}}, {distil: {epochs: 1}}]
calibration: {source: TEXT, sequences: 8, length: 64, seed: 0}
"""
PAIRS = "name: pairs\nweights: nf4:g32\nmethods: [rtn]\n"


@pytest.fixture(scope="module")
def whole(house, tmp_path_factory) -> Path:
    return small.write_recipe(tmp_path_factory.mktemp("recipes") / "whole.yaml", WHOLE, house.calibration)


@pytest.fixture(scope="module")
def tuned(house, whole: Path, tmp_path_factory) -> Result:
    return quantize(str(house.base), str(whole), options=on_gpu(house, tmp_path_factory.mktemp("tuned") / "out"))


def on_gpu(house, out: Path, **changed) -> Options:
    return house.options(out=out, device=DEVICE, **changed)


def test_a_checkpoint_made_there_is_as_near_as_one_made_here(house, whole: Path, tuned: Result, tmp_path: Path) -> None:
    here = quantize(str(house.base), str(whole), options=house.options(out=tmp_path / "here"))
    losses = [
        evaluate(str(made.directory), str(house.base), options=house.options(out=tmp_path / name)).numbers["kl"]
        for name, made in (("one", tuned), ("other", here))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0.1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_is_measured_alike_on_both(house, tuned: Result, tmp_path: Path, dtype: str) -> None:
    def measured(device: str) -> float:
        options = house.options(out=tmp_path / device, device=device, dtype=dtype)
        return evaluate(str(tuned.directory), str(house.base), options=options).numbers["kl"]

    assert measured(DEVICE) == pytest.approx(measured("cpu"), rel=1e-4 if dtype == "float32" else 0.05)


def test_the_x_ray_and_the_map(house, tmp_path: Path) -> None:
    seen = inspect(str(house.base), options=on_gpu(house, tmp_path / "seen", calibration=str(house.calibration)))
    assert seen.numbers["summary"]
    there, here = (
        map_model(str(house.base), ("int4:g32", "int2:g32"), recipe=str(house.rtn), share=1.0, options=options).numbers
        for options in (on_gpu(house, tmp_path / "there"), house.options(out=tmp_path / "here"))
    )
    for one, other in zip(there["cells"], here["cells"], strict=True):
        assert (one["place"], one["format"]) == (other["place"], other["format"])
        assert one["kl"] == pytest.approx(other["kl"], rel=0.01, abs=1e-5)


def test_the_culprit(house, tuned: Result, tmp_path: Path) -> None:
    found = diagnose(str(tuned.directory), str(house.base), options=on_gpu(house, tmp_path / "out"))
    assert found.directory is not None and found.lines


def test_recipes_side_by_side(house, tmp_path: Path) -> None:
    found = compare(str(house.base), [str(house.rtn), str(house.gptq)], options=on_gpu(house, tmp_path / "out"))
    assert found.lines


@pytest.mark.parametrize("blockwise", [False, True], ids=["whole", "blocks first"])
def test_training_through_the_rounding(house, tmp_path: Path, blockwise: bool) -> None:
    start = quantize(str(house.base), str(house.rtn), options=on_gpu(house, tmp_path / "start")).directory
    asked = Asked(length=32, epochs=4, batch=4, rate=0.02, codes=True, blockwise=blockwise)
    found = train_qat(
        str(house.base), data=str(house.calibration), start=str(start), asked=asked,
        options=on_gpu(house, tmp_path / "out"),
    )  # fmt: skip
    assert found.numbers["training"]["loss_after"] < found.numbers["training"]["curve"][0][1]
    assert found.numbers["kl"] < found.numbers["kl_start"]


def test_adapters(house, tmp_path: Path) -> None:
    words = ["the", "a", "of", "to", "in", "and", "is", "it"]
    rows = [{"id": f"{a}{b}", "text": f"{a} {b}\n", "completion": f"{b} {a}"} for a in words for b in words]
    data = small.write_rows(tmp_path / "rows.jsonl", rows)
    recipe = small.write_recipe(tmp_path / "pairs.yaml", PAIRS)
    found = train_qlora(
        str(house.base), str(data), str(recipe), shape=LoraShape(rank=4, alpha=16.0),
        course=Course(steps=8, batch=8, rate=2e-2, save=4), material=Material(share=0.2),
        options=on_gpu(house, tmp_path / "out"),
    )  # fmt: skip
    assert [row["mode"] for row in found.numbers["merges"]] == ["apart", "16-bit", "dequantized", "requantized"]


def test_what_runs_on_codes(house, tuned: Result, tmp_path: Path) -> None:
    """Weights are dequantized where no kernel of ours serves the device."""
    options = replace(on_gpu(house, tmp_path / "out"), out=None)
    assert generate(str(tuned.directory), "the", tokens=4, raw=True, options=options).lines
    assert bench(str(tuned.directory), prompt=16, tokens=4, rounds=2, options=on_gpu(house, tmp_path / "speed")).lines
    assert advise(str(house.base), batch=(1,), context=32, options=on_gpu(house, tmp_path / "advice")).lines


def test_keys_and_values_in_few_bits(house, tmp_path: Path) -> None:
    found = kv(
        str(house.base), policies=("int4:g16",), contexts=(64,), windows=1, retrieval=0, written=4,
        options=on_gpu(house, tmp_path / "out", evals=(str(house.calibration),)),
    )  # fmt: skip
    assert found.lines
