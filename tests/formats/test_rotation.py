import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from subeight.errors import FormatError
from subeight.formats import Format, fake_quantize, find_scales, quantize
from subeight.formats.rotation import rotate, turned_importance, unrotate


@settings(deadline=None)
@given(st.integers(1, 1600))
def test_any_width_is_turned_and_turned_back(width):
    x = torch.randn(3, width, generator=torch.Generator().manual_seed(width))
    turned = rotate(x)
    assert torch.allclose(unrotate(turned), x, atol=1e-4)
    assert torch.allclose(turned @ turned.T, x @ x.T, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("width", [64, 576, 1536, 172])
def test_it_is_one_orthogonal_matrix_the_same_every_time(width):
    matrix = rotate(torch.eye(width)).double()
    assert torch.allclose(matrix @ matrix.T, torch.eye(width, dtype=torch.float64), atol=1e-5)
    assert torch.equal(matrix, rotate(torch.eye(width)).double())
    x = torch.randn(5, width, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(rotate(x).double(), x.double() @ matrix, atol=1e-4)


@pytest.mark.parametrize("width", [64, 576, 1536])
def test_one_loud_column_is_spread_over_all(width):
    x = torch.zeros(1, width)
    x[0, 3] = 100.0
    assert float(rotate(x).abs().max()) < 100 * 5 / min(width, 512) ** 0.5


@pytest.mark.parametrize(
    "text", ["int4:g64:sym:had", "int2:g32:asym:had", "nf4:g64:had", "mxfp4:had", "int8:channel:sym:fp16:had"]
)
def test_weights_are_rounded_in_the_turned_basis(text):
    weight, format = torch.randn(6, 192, generator=torch.Generator().manual_seed(1)), Format.parse(text)
    assert str(format) == text and Format.parse(str(format)) == format
    assert format.bits((6, 192)) == format.plain.bits((6, 192))
    rounded = quantize(weight, format)
    inside = quantize(rotate(weight), format.plain)
    assert rounded.format == format and torch.equal(rounded.codes, inside.codes)
    assert torch.allclose(rotate(rounded.dequantize()), inside.dequantize(), atol=1e-5)
    scales = find_scales(weight, format, search="mse")
    assert torch.equal(quantize(weight, format, scales).scales, scales.scales)


@pytest.mark.parametrize("text", ["int4:token:sym:had", "int8:token:sym:had", "mxfp4:had", "fp8:token:had"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inputs_are_rounded_in_the_turned_basis_and_outliers_cost_less(text, dtype):
    x = torch.randn(2, 40, 192, generator=torch.Generator().manual_seed(2))
    x[..., 7] *= 60
    x, format = x.to(dtype), Format.parse(text)
    found = fake_quantize(x, format)
    assert found.dtype == dtype and found.shape == x.shape
    expected = unrotate(fake_quantize(rotate(x), format.plain)).to(dtype)
    assert torch.equal(found, expected)
    if text.startswith("int4"):
        errors = [(fake_quantize(x, how).float() - x.float()).square().mean() for how in (format, format.plain)]
        assert errors[0] < 0.2 * errors[1]


def test_importance_is_that_of_the_turned_columns():
    importance = torch.rand(48, generator=torch.Generator().manual_seed(3))
    matrix = rotate(torch.eye(48)).double()
    expected = torch.diag(matrix.T @ torch.diag(importance.double()) @ matrix)
    assert torch.allclose(turned_importance(importance).double(), expected, atol=1e-5)
    assert float(turned_importance(importance).sum()) == pytest.approx(float(importance.sum()), rel=1e-4)


def test_what_is_said_twice_is_refused():
    with pytest.raises(FormatError, match="says the same thing twice"):
        Format.parse("int4:had:had")
