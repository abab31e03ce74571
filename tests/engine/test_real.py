"""Small real models, where they lie beside the checkout, and a GPU, where there is one."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from subeight.errors import OutputError
from subeight.evals.passes import Computing
from subeight.evals.scoring import ask, score
from subeight.formats import Format, find_scales
from subeight.formats import quantize as round_plainly
from subeight.models.model import Model
from subeight.text import CalibrationSpec, calibrate, evaluate_set
from subeight.verbs.quantize import warnings_of
from tests.engine.test_families import plain_logits, streamed_logits
from tests.engine.tiny import AWQ_GPTQ, calibration, codes_of, quantize
from tests.verbs.small import save_llama

Find = Callable[[str], Path]


def text_of(source: Path) -> Tensor:
    """Calibration in the model's own tokens; these models know a few hundred of them."""
    return calibrate(CalibrationSpec("builtin", 8, 128, 0), Model(source).tokenizer()).ids


def kl(source: Path, written: Path, cache: Path, device: str = "cpu") -> float:
    """Mean KL of a written checkpoint on a little of the packaged evaluation text."""
    baseline = Model(source)
    evaluation = evaluate_set(["builtin"], baseline.tokenizer(), window=128, tokens=512, longest=128)
    computing = Computing(torch.float32, torch.device(device), quiet=True)
    return score(ask(baseline, evaluation, computing, cache), Model(written)).numbers["kl"]


@pytest.mark.real
def test_a_short_last_group_is_written_dense(real_model: Find, tmp_path: Path) -> None:
    source = real_model("stories260K")  # 172 columns: two groups of 64 and one of 44
    recipe = "{weights: 'int4:g64', methods: [gptq]}"
    with pytest.raises(OutputError, match="172"):
        quantize(source, recipe, tmp_path / "packed", text_of(source))
    assert not (tmp_path / "packed").exists()
    lane = quantize(source, recipe, tmp_path / "out", text_of(source), "dense")
    short = [site for site in lane.plan.quantized if "last group short: 44 of 64" in site.reason]
    assert [site.linear.name.rsplit(".", 1)[1] for site in short] == ["down_proj"] * 5
    weight = Model(tmp_path / "out").weights.read("model.layers.0.mlp.down_proj.weight")
    assert all(len(weight[0, start : start + 64].unique()) <= 16 for start in (0, 64, 128))
    plain = "{weights: 'int4:g64', methods: [rtn]}"
    quantize(source, plain, tmp_path / "rtn", None, "dense")
    found = kl(source, tmp_path / "out", tmp_path / "cache")
    assert 0 < found < kl(source, tmp_path / "rtn", tmp_path / "cache")


@pytest.mark.real
def test_experts_that_no_token_reached_are_rounded_plainly(real_model: Find, tmp_path: Path) -> None:
    source = real_model("moe-stories-8x-1.5M")
    recipe = "{weights: 'int4:g32', methods: [gptq]}"
    lane = quantize(source, recipe, tmp_path / "out", text_of(source)[:1, :4], "dense")
    unfed = [o for o in lane.outcomes().values() if o["notes"]["dead"] and o["output_error"] is None]
    experts = {name: outcome for name, outcome in lane.outcomes().items() if ".experts." in name}
    assert 0 < len(unfed) < len(experts)
    assert any("reached" in warning and "rounded plainly" in warning for warning in warnings_of(lane))
    written, before = Model(tmp_path / "out"), Model(source)
    for outcome in unfed:
        view = next(view for view in before.views() if view.info.name == outcome["name"])
        one, other = (view.of(model.weights.read(view.parameter)) for model in (before, written))
        format, even = Format.parse("int4:g32"), torch.ones(one.shape[1])
        scales = find_scales(one, format, search="mse", importance=even, signed=True)
        nearest = round_plainly(one, format, scales)
        assert torch.equal(other, nearest.dequantize())
        assert outcome["weight_error"] < 0.2


@pytest.mark.real
@pytest.mark.parametrize("name", ["babyllama-tok105-0.9M", "moe-stories-8x-1.5M"])
def test_real_weights_survive(real_model: Find, tmp_path: Path, name: str) -> None:
    source = real_model(name)
    ids = text_of(source)
    for bits in (8, 3):
        recipe = AWQ_GPTQ.replace("int4", f"int{bits}").replace("TAP", "sequential")
        quantize(source, recipe, tmp_path / str(bits), ids, "dense")
    losses = [kl(source, tmp_path / str(bits), tmp_path / "cache") for bits in (8, 3)]
    assert 0 < losses[0] < 0.01
    assert losses[0] < losses[1] < 1
    test = ids[:2, :40]
    found, expected = streamed_logits(tmp_path / "3", test), plain_logits(tmp_path / "3", test)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
@pytest.mark.parametrize("inputs", ["", "inputs: 'int8:tensor', "], ids=["weights", "static inputs"])
def test_a_gpu_computes_the_same(tmp_path: Path, inputs: str) -> None:
    source = save_llama(tmp_path / "model")
    recipe = AWQ_GPTQ.replace("TAP", "sequential").replace("{weights: 'int4:g32', ", "{weights: 'int4:g32', " + inputs)
    ids = calibration(16, 64, vocabulary=320)
    losses = {}
    for device in ("cpu", "cuda"):
        quantize(source, recipe, tmp_path / device, ids, device=torch.device(device))
        losses[device] = kl(source, tmp_path / device, tmp_path / "cache", device)
    one, other = codes_of(tmp_path / "cpu"), codes_of(tmp_path / "cuda")
    different = sum(int((one[name] != other[name]).sum()) for name in one)
    assert different <= 0.01 * sum(codes.numel() for codes in one.values())
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=0.05, abs=1e-4)
    assert kl(source, tmp_path / "cpu", tmp_path / "cache", "cuda") == pytest.approx(losses["cpu"], rel=0.01, abs=1e-5)
