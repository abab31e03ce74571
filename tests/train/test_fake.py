"""Fake quantization: what is multiplied is what is stored, and gradients pass as if nothing were rounded."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from subeight.errors import FormatError
from subeight.formats import Format, QTensor, Thin, fake_quantize, quantize
from subeight.formats.rotation import rotate
from subeight.train.fake import NEAR, FakeLinear, TrainedWeight

FORMATS = ("int2:g32:sym", "int3:g32:asym", "int4:g64:sym", "int4:channel:sym", "int4:g32:sym:had", "int8:tensor:sym")


def rounded(format: str, seed: int = 0, shape: tuple[int, int] = (24, 128)) -> tuple[Tensor, QTensor]:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return weight, quantize(weight, Format.parse(format))


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_multiplied_is_what_is_stored(format: str) -> None:
    weight, start = rounded(format)
    trained = TrainedWeight(start, torch.float32, weight)
    assert torch.equal(trained(), start.dequantize())  # a little toward the weight turns no code
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        trained.position += 3 * torch.randn(trained.position.shape, generator=draw)
        trained.factor *= 1 + 0.3 * torch.rand(trained.factor.shape, generator=draw)
    stored = trained.stored()
    assert torch.equal(trained(), stored.dequantize())
    first, last = stored.format.levels
    assert first <= int(stored.codes.min()) and int(stored.codes.max()) <= last
    assert (stored.codes != start.codes).any() and not torch.equal(stored.scales, start.scales)


@pytest.mark.parametrize("format", FORMATS)
def test_gradients_against_float64(format: str) -> None:
    """By hand: the weight is rotation^T (code - zero) scale, and d code / d position is 1."""
    weight, start = rounded(format)
    trained = TrainedWeight(start, torch.float32, weight)
    slope = torch.randn(start.shape, generator=torch.Generator().manual_seed(2))
    (trained() * slope).sum().backward()
    assert trained.position.grad is not None and trained.factor.grad is not None
    eye = torch.eye(start.shape[1])
    turned = slope.double() @ (rotate(eye) if start.format.rotated else eye).double()
    width = start.format.group or start.shape[1]
    values = (start.codes.double() - _spread(start.zeros, width, start)).unflatten(1, (-1, width))
    to_scale = (turned.unflatten(1, (-1, width)) * values).sum(-1)
    if start.format.per == "tensor":
        to_scale = to_scale.sum().view(1, 1)
    torch.testing.assert_close(trained.factor.grad.double(), to_scale * start.scales.double(), rtol=1e-4, atol=1e-4)
    expected = turned.unflatten(1, (-1, width)) * start.scales.double()[..., None]
    first, last = start.format.levels
    position = trained.position.detach().double()
    outward = ((position < first - 0.49) & (expected > 0)) | ((position > last + 0.49) & (expected < 0))
    torch.testing.assert_close(trained.position.grad.double(), expected.masked_fill(outward, 0.0), rtol=1e-4, atol=1e-4)


def _spread(zeros: Tensor | None, width: int, start: QTensor) -> Tensor:
    if zeros is None:
        return torch.zeros(start.shape, dtype=torch.float64)
    return zeros.double().repeat_interleave(width, 1)


def test_a_position_begins_no_farther_than_near() -> None:
    weight, start = rounded("int3:g32:sym")
    far = TrainedWeight(start, torch.float32, weight + 100)
    codes = start.codes.float().unflatten(1, (-1, 32))
    assert float((far.position.detach() - codes).abs().max()) == pytest.approx(NEAR)


def test_beyond_the_last_code_nothing_leads_further_out() -> None:
    _, start = rounded("int2:g32:sym")
    trained = TrainedWeight(start, torch.float32)
    with torch.no_grad():
        trained.position.fill_(5.0)
    trained().sum().backward()  # scales are positive or negative: the gradient to a position has their sign
    scale = trained.scale()[..., None].expand_as(trained.position)
    assert torch.equal(trained.position.grad[scale < 0], torch.zeros(int((scale < 0).sum())))
    assert (trained.position.grad[scale > 0] > 0).all()


def test_what_was_set_apart_stays() -> None:
    weight, start = rounded("int4:g32:sym")
    thin = Thin.of(torch.ones(24, 2), torch.ones(2, 128))
    held = replace(start, thin=thin)
    trained = TrainedWeight(held, torch.float32, weight + thin.dense())
    assert torch.allclose(trained(), held.dequantize())
    assert trained.stored().thin is thin


def test_other_grids_are_refused() -> None:
    with pytest.raises(FormatError, match="nf4:g64 cannot be trained: ask for int2 to int8"):
        TrainedWeight(quantize(torch.ones(4, 64), Format.parse("nf4:g64")), torch.float32)


def test_inputs_are_rounded_and_pass_gradients() -> None:
    _, start = rounded("int4:g32:sym")
    eight = Format.parse("int8:token")
    linear = FakeLinear(TrainedWeight(start, torch.float32), None, (eight, None), torch.float32)
    x = torch.randn(3, 128, requires_grad=True)
    assert torch.allclose(linear(x), fake_quantize(x, eight) @ start.dequantize().T, atol=1e-5)
    linear(x).sum().backward()
    assert torch.allclose(x.grad, start.dequantize().sum(0).expand(3, -1), atol=1e-5)
