from math import gcd

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from subeight.errors import KernelError
from subeight.formats import Format, QTensor, Scales, quantize
from subeight.kernels import products
from subeight.kernels.inputs import rounded_codes
from subeight.kernels.native import Native, native
from tests.oracles import kernels_products as oracle

INTEGERS = ["int2:g64", "int3:g64", "int4:g64", "int3:g32:asym", "int4:g32:asym", "int2:g128:asym", "int4:channel"]
CODEBOOKS = ["nf4:g64", "mxfp4"]


@pytest.fixture(scope="module")
def kernels() -> Native:
    found = native()
    if isinstance(found, str):
        pytest.skip(found)
    return found


def drawn(text: str, out: int, width: int, rows: int, seed: int) -> tuple[QTensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    weight = quantize(torch.randn(out, width, generator=draw), Format.parse(text))
    return weight, torch.randn(rows, width, generator=draw)


def in_float64(weight: QTensor) -> np.ndarray:
    values = weight.format.values.values(weight.codes).double().numpy()
    zeros = None if weight.zeros is None else weight.zeros.double().numpy()
    return oracle.dequantized(values, weight.scales.double().numpy(), zeros, weight.format.group or weight.shape[1])


@settings(max_examples=25, deadline=None)
@given(
    text=st.sampled_from([*INTEGERS, "int8:channel", "int8:g32"]),
    out=st.integers(1, 40),
    groups=st.integers(1, 3),
    rows=st.integers(1, 7),
    seed=st.integers(0, 1000),
)
def test_integers_with_x_rounded(kernels, text, out, groups, rows, seed):
    if text.startswith("int8") and not kernels.has_bytes:
        pytest.skip("no products of bytes in this build")
    weight, x = drawn(text, out, groups * 128, rows, seed)
    packed = products.pack_matrix(weight)
    found = products.multiply_rounded(x, packed, kernels).double().numpy()
    step = gcd(packed.group, products.STEP)
    wanted = oracle.rounded(x.numpy(), step) @ in_float64(weight).T
    assert np.allclose(found, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("fixed", [None, 0.03])
@settings(max_examples=25, deadline=None)
@given(out=st.integers(1, 70), width=st.integers(1, 40), rows=st.integers(1, 30), seed=st.integers(0, 1000))
def test_int8_is_exact_before_its_scales(kernels, dtype, fixed, out, width, rows, seed):
    if not kernels.has_int8:
        pytest.skip("no products of bytes in this build")
    weight, x = drawn("int8:channel", out, 4 * width, rows, seed)
    x = (x * torch.logspace(-3, 1, rows)[:, None]).to(dtype)
    found = products.multiply_int8(x, products.pack_matrix(weight), fixed, kernels)
    scales = None if fixed is None else Scales(torch.full((1, 1), fixed))
    codes, own = rounded_codes(x, Format.parse("int8:token"), scales)
    sums = torch.from_numpy(codes.long().numpy() @ weight.codes.long().numpy().T)
    wanted = sums.float() * (weight.scales.T * own.to(dtype).float())
    assert torch.equal(found, wanted.to(dtype))


def test_int8_of_what_is_no_number(kernels):
    if not kernels.has_int8:
        pytest.skip("no products of bytes in this build")
    weight, x = drawn("int8:channel", 20, 40, 3, 0)
    x[1, 37] = torch.nan
    found = products.multiply_int8(x, products.pack_matrix(weight), None, kernels)
    assert torch.isnan(found).all(1).tolist() == [False, True, False]
    with pytest.raises(KernelError, match="a scale per channel"):
        products.multiply_int8(x, products.pack_matrix(drawn("int8:g8", 20, 40, 1, 0)[0]), None, kernels)


@settings(max_examples=25, deadline=None)
@given(
    text=st.sampled_from([*INTEGERS, *CODEBOOKS, "int8:channel", "int8:g32:asym"]),
    out=st.integers(1, 40),
    groups=st.integers(1, 3),
    rows=st.integers(1, 7),
    seed=st.integers(0, 1000),
)
def test_looked_up(kernels, text, out, groups, rows, seed):
    if not kernels.has_lookup:
        pytest.skip("no bf16 products in this build")
    weight, x = drawn(text, out, groups * 128, rows, seed)
    found = products.multiply_looked_up(x, products.pack_matrix(weight), kernels).double().numpy()
    values, matrix = x.bfloat16().double().numpy(), in_float64(weight)
    tolerance = 2**-8 if text.startswith("nf4") else 1e-5  # nf4's values are rounded to bf16
    assert (np.abs(found - values @ matrix.T) <= tolerance * (np.abs(values) @ np.abs(matrix).T)).all()


@pytest.mark.parametrize("out, width", [(24, 256), (7, 128), (33, 384)])
@pytest.mark.parametrize("text", [*INTEGERS, *CODEBOOKS, "int8:channel", "int8:g64:asym", "int4:g16"])
def test_unpacked(kernels, text, out, width):
    weight, _ = drawn(text, out, width, 1, 0)
    assert torch.equal(products.unpack_matrix(products.pack_matrix(weight), kernels), weight.dequantize(torch.bfloat16))


@pytest.mark.parametrize("form", ["rounded", "looked_up"])
def test_bf16_in_and_out(kernels, form):
    multiply = getattr(products, f"multiply_{form}")
    if form == "looked_up" and not kernels.has_lookup:
        pytest.skip("no bf16 products in this build")
    weight, x = drawn("int3:g64", 24, 256, 3, 0)
    packed = products.pack_matrix(weight)
    found = multiply(x.bfloat16(), packed, kernels)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, multiply(x.bfloat16().float(), packed, kernels).bfloat16())


def test_bytes_that_are_read(kernels):
    for text in (*INTEGERS, *CODEBOOKS):
        weight, _ = drawn(text, 32, 256, 1, 0)
        unpacked = 0 if weight.zeros is None else weight.zeros.numel()  # zero points are bytes here
        wider = weight.scales.numel() if text == "mxfp4" else 0  # bf16 in place of a byte
        assert products.pack_matrix(weight).nbytes <= weight.nbytes + unpacked + wider


@pytest.mark.parametrize("text", ["int5:g64", "fp8", "nvfp4", "int4:g64:sym:fp32", "int2:g24"])
def test_what_has_no_layout(text):
    weight, _ = drawn(text, 16, 240, 1, 0)
    assert not products.can_pack(weight.format, weight.shape)
    with pytest.raises(KernelError, match="no packed layout"):
        products.pack_matrix(weight)


def test_wrong_x(kernels):
    packed = products.pack_matrix(drawn("int4:g64", 16, 128, 1, 0)[0])
    with pytest.raises(KernelError, match="give bf16 or float32"):
        products.multiply_rounded(torch.zeros(1, 64), packed, kernels)
    with pytest.raises(KernelError, match="look it up"):
        products.multiply_rounded(
            torch.zeros(1, 128), products.pack_matrix(drawn("nf4:g64", 16, 128, 1, 0)[0]), kernels
        )
