"""W8A8: inputs are rounded where the plan says so, in the loop, in the checkpoint and in its evaluation."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from subeight.engine import loop
from subeight.engine.streams import MemoryStream
from subeight.formats import Format, Scales, fake_quantize
from subeight.models.block import Block
from subeight.models.model import Model
from subeight.models.shell import Shell
from tests.engine.test_families import plain_logits, streamed_logits
from tests.engine.tiny import calibration, quantize

Find = Callable[..., Path]
W8A8 = "{weights: 'int8:channel', inputs: 'int8:INPUTS', methods: [METHODS], tap: TAP}"


def recipe(inputs: str, methods: str = "smooth, rtn", tap: str = "sequential") -> str:
    return W8A8.replace("INPUTS", inputs).replace("METHODS", methods).replace("TAP", tap)


@pytest.mark.parametrize("inputs", ["token", "tensor"])
@pytest.mark.parametrize("tap", ["sequential", "exact"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_evaluating_is_what_compressed_tensors_computes(
    checkpoint: Find, tmp_path: Path, family: str, inputs: str, tap: str
) -> None:
    quantize(checkpoint(family), recipe(inputs, tap=tap), tmp_path / "out", calibration())
    ids = calibration(2, 20, seed=9)
    found, expected = streamed_logits(tmp_path / "out", ids), plain_logits(tmp_path / "out", ids)
    before = plain_logits(checkpoint(family), ids)
    error = float((expected - before).std()) / float(before.std())
    assert 0.002 < error < 0.2
    # a value half-way between two codes may fall to either side: far less than what rounding costs
    assert float((found - expected).std()) < 0.05 * float((expected - before).std())


@pytest.mark.parametrize("inputs", ["token", "tensor"])
@pytest.mark.parametrize("methods", ["rtn", "gptq"])
def test_the_next_block_saw_rounded_inputs(
    checkpoint: Find, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inputs: str, methods: str
) -> None:
    seen: list[Tensor] = []

    class Recorded(MemoryStream):
        def advance(self, function, shell) -> None:
            super().advance(function, shell)
            seen.append(self._hidden[0])

    monkeypatch.setattr(loop, "MemoryStream", Recorded)
    ids = calibration()
    # without `smooth`, dynamic rtn reads no text: gptq in the second block makes it a lane of its own
    text = recipe(inputs, methods).replace("tap:", "rules: [{match: '*.1.*', methods: [gptq]}], tap:")
    quantize(checkpoint("llama"), text, tmp_path / "out", ids)
    written = Model(tmp_path / "out")
    shell = Shell(written, torch.float32)
    hidden, call = shell.embed(ids[:4]), shell.call((4, ids.shape[1]), 0)
    assert torch.equal(Block(written, 0, torch.float32)(hidden, call), seen[0])
    weights_only = Block(written, 0, torch.float32)
    weights_only._inputs = {}
    assert not torch.allclose(weights_only(hidden, call), seen[0], rtol=1e-4, atol=1e-4)


def test_static_scales_cover_what_was_seen(checkpoint: Find, tmp_path: Path) -> None:
    quantize(checkpoint("llama"), recipe("tensor", "rtn"), tmp_path / "out", calibration())
    written, ids = Model(tmp_path / "out"), calibration()
    assert written.codes is not None
    shell = Shell(Model(checkpoint("llama")), torch.float32)
    hidden = torch.cat([shell.embed(part) for part in ids.split(4)])
    norm = written.weights.read("model.layers.0.input_layernorm.weight")
    read = norm * hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + 1e-6)
    for name in ("q_proj", "k_proj", "v_proj"):  # one input, one scale
        format, static = written.codes.inputs(f"model.layers.0.self_attn.{name}")
        assert str(format) == "int8:tensor:sym"
        assert isinstance(static, Scales)
        torch.testing.assert_close(float(static.scales), float(read.abs().max()) / 127.5, rtol=1e-2, atol=0)
    others = {float(written.codes.inputs(name)[1].scales) for name in written.codes.names}
    assert len(others) == 8  # one for each of four groups in two blocks
    rounded = fake_quantize(read, Format.parse("int8:tensor"), static)
    assert float((rounded - read).abs().max()) <= 1.1 * float(static.scales)  # hardly anything is clipped
