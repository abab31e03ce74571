"""The search for the least squared error: near the best there is, never worse than absmax, bounded and repeatable."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from subeight.errors import FormatError
from subeight.formats import Format, find_scales, quantize
from subeight.formats import search as search_file
from tests.formats.samples import WEIGHT_FORMATS, make_weight
from tests.oracles.formats_numbers import best_int_error, squared_error


def _errors(weight: Tensor, text: str, search: str, importance: Tensor | None = None) -> Tensor:
    """Squared error of every row, in float64."""
    quantized = quantize(weight, Format.parse(text), search=search, importance=importance)
    error = (quantized.dequantize().double() - weight.double()) ** 2
    return (error if importance is None else error * importance.double()).sum(-1)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_near_the_best_of_a_dense_scan(bits: int, symmetric: bool) -> None:
    weight = make_weight(21, rows=8, width=48)
    importance = torch.rand(48, generator=torch.Generator().manual_seed(1)) + 0.1
    format = Format.parse(f"int{bits}:g48:{'sym' if symmetric else 'asym'}:fp32")
    for worth in (None, importance):
        quantized = quantize(weight, format, search="mse", importance=worth)
        ours, best = [], []
        for i, row in enumerate(weight.tolist()):
            weights = [1.0] * 48 if worth is None else worth.tolist()
            zero = 0 if quantized.zeros is None else int(quantized.zeros[i, 0])
            scale = float(quantized.scales[i, 0])
            ours.append(squared_error(row, scale, zero, *format.levels, weights))
            best.append(best_int_error(row, bits, symmetric, weights, steps=150))
        # relative to each row: rows differ by orders of magnitude
        ratios = [a / b for a, b in zip(ours, best, strict=True)]
        assert sum(ratios) / len(ratios) <= (1.03 if symmetric else 1.10)
        assert max(ratios) <= (1.15 if symmetric else 1.35)


@given(st.sampled_from(WEIGHT_FORMATS), st.integers(0, 2**20))
@settings(max_examples=50, deadline=None)
def test_never_worse_than_the_full_range(text: str, seed: int) -> None:
    weight = make_weight(seed)
    found, full = _errors(weight, text, "mse"), _errors(weight, text, "absmax")
    if Format.parse(text).per == "tensor":
        found, full = found.sum(), full.sum()
    assert bool((found <= full * (1 + 1e-5)).all())


@pytest.mark.parametrize("text", ["int4:g64:sym", "int3:g64:sym", "int2:g64:sym", "nf4:g64", "nvfp4", "int3:tensor"])
def test_clips_where_that_pays(text: str) -> None:
    weight = torch.randn(16, 256, generator=torch.Generator().manual_seed(0))
    found, full = _errors(weight, text, "mse").sum(), _errors(weight, text, "absmax").sum()
    assert float(found) < 0.95 * float(full)


def test_importance_moves_the_error_to_what_counts_less() -> None:
    weight = make_weight(4, rows=16, width=128)
    importance = torch.ones(128)
    importance[:16] = 1000
    text = "int2:g64:sym"
    plain = quantize(weight, Format.parse(text), search="mse").dequantize()
    led = quantize(weight, Format.parse(text), search="mse", importance=importance).dequantize()
    assert float(((led - weight)[:, :16] ** 2).sum()) < 0.9 * float(((plain - weight)[:, :16] ** 2).sum())
    weighed = _errors(weight, text, "mse", importance).sum()
    unweighed = ((plain - weight).double() ** 2 * importance).sum()
    assert float(weighed) < float(unweighed)


@pytest.mark.parametrize("text", ["int4:g64:sym", "int4:g64:asym", "int8:tensor", "nvfp4"])
def test_only_the_ratios_of_importance_count(text: str) -> None:
    weight = make_weight(4)
    importance = torch.rand(172, generator=torch.Generator().manual_seed(2))
    once = find_scales(weight, Format.parse(text), search="mse", importance=importance)
    many = find_scales(weight, Format.parse(text), search="mse", importance=importance * 2.0**100)
    assert torch.equal(once.scales, many.scales)
    nothing = find_scales(weight, Format.parse(text), search="mse", importance=torch.zeros(172))
    assert torch.equal(nothing.scales, find_scales(weight, Format.parse(text)).scales)


@pytest.mark.parametrize("text", WEIGHT_FORMATS)
def test_minmax_and_absmax_are_the_full_range(text: str) -> None:
    weight, format = make_weight(6), Format.parse(text)
    one, other = find_scales(weight, format), find_scales(weight, format, search="minmax")
    assert torch.equal(one.scales, other.scales)


@pytest.mark.parametrize("text", ["int4:g64:sym", "int4:g64:asym", "int8:channel", "nvfp4", "nf4:g64"])
def test_the_size_of_a_chunk_changes_nothing(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, format = make_weight(8, rows=40), Format.parse(text)
    whole = quantize(weight, format, search="mse")
    again = quantize(weight, format, search="mse")
    monkeypatch.setattr(search_file, "_CHUNK", 500)
    pieces = quantize(weight, format, search="mse")
    for other in (again, pieces):
        assert torch.equal(whole.scales, other.scales)
        assert torch.equal(whole.codes.float(), other.codes.float())


class _Largest(TorchDispatchMode):
    """Remembers the most elements that an operation has allocated."""

    def __init__(self, given: Tensor) -> None:
        super().__init__()
        self.given = given.untyped_storage().data_ptr()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() != self.given:
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


@pytest.mark.parametrize("text", ["int4:g64:sym", "int4:channel:asym", "int8:tensor", "nf4:g64"])
def test_memory_is_bounded_by_the_chunk(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_file, "_CHUNK", 4096)
    weight = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    with _Largest(weight) as largest:
        find_scales(weight, Format.parse(text), search="mse")
    assert 0 < largest.elements <= 4096


def test_importance_that_cannot_be() -> None:
    weight, format = make_weight(1), Format.parse("int4")
    for bad in (torch.ones(171), torch.ones(1, 172)):
        with pytest.raises(FormatError, match="172 columns"):
            find_scales(weight, format, search="mse", importance=bad)
    for value in (-1.0, float("nan"), float("inf")):
        with pytest.raises(FormatError, match="importance holds"):
            find_scales(weight, format, search="mse", importance=torch.full((172,), value))


@pytest.mark.parametrize("text", ["int2:g16:sym", "int3:g16:sym", "int4:channel:sym", "int3:tensor:sym"])
def test_a_signed_search_is_at_least_as_good_and_mirrors(text):
    weight, format = outlying_rows(), Format.parse(text)
    plain, signed = (
        quantize(weight, format, find_scales(weight, format, search="mse", signed=s)) for s in (False, True)
    )
    errors = [(q.dequantize() - weight).square().sum() for q in (plain, signed)]
    assert errors[1] < errors[0]
    assert bool((signed.scales < 0).any()) and bool((plain.scales > 0).all())
    mirrored = quantize(-weight, format, find_scales(-weight, format, search="mse", signed=True))
    assert torch.equal(mirrored.dequantize(), -signed.dequantize())


@pytest.mark.parametrize("text", ["int8:g16:sym", "int3:g16:asym", "nf4:g16", "mxfp4"])
def test_other_grids_have_no_sign_to_choose(text):
    weight, format = outlying_rows(), Format.parse(text)
    plain, signed = (find_scales(weight, format, search="mse", signed=s) for s in (False, True))
    assert torch.equal(plain.scales, signed.scales)


def outlying_rows() -> torch.Tensor:
    """Negative extremes in some groups, positive ones in others."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 64, generator=generator)
    weight[:3, ::16] = -weight[:3, ::16].abs() * 3
    weight[3:, 5::16] = weight[3:, 5::16].abs() * 3
    return weight
