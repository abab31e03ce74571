import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from subeight.formats import Format, Sparse, Thin, quantize
from subeight.formats.apart import sparse_bits, thin_bits

sizes = st.tuples(st.integers(1, 9), st.integers(1, 40))


@given(sizes, st.floats(0, 1), st.integers(0, 2**31))
def test_sparse_is_the_chosen_values_in_16_bits(shape, share, seed):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(shape, generator=generator)
    chosen = torch.rand(shape, generator=generator) < share
    sparse = Sparse.of(matrix, chosen)
    dense = sparse.dense(shape[1])
    assert torch.equal(dense, torch.where(chosen, matrix.bfloat16().float(), 0.0))
    start, stop = sorted(torch.randint(0, shape[0] + 1, (2,), generator=generator).tolist())
    assert torch.equal(sparse.rows(start, stop).dense(shape[1]), dense[start:stop])
    assert sum(value.nbytes for value in sparse.stored().values()) * 8 == sparse_bits(shape, int(chosen.sum()))


@pytest.mark.parametrize("text", ["int4:g8:sym", "int2:g8:asym", "nf4:g8", "fp8"])
def test_what_is_apart_is_added_and_counted(text):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 24, generator=generator)
    plain = quantize(weight, Format.parse(text))
    whole = quantize(weight, Format.parse(text))
    whole.sparse = Sparse.of(weight, weight.abs() > 2)
    whole.thin = Thin.of(torch.randn(6, 2, generator=generator), torch.randn(2, 24, generator=generator))
    expected = plain.dequantize() + whole.sparse.dense(24) + whole.thin.left @ whole.thin.right
    assert torch.equal(whole.dequantize(), expected)
    assert torch.equal(whole.codes_alone().dequantize(), plain.dequantize())
    count = len(whole.sparse.values)
    assert whole.nbytes - plain.nbytes == (sparse_bits((6, 24), count) + thin_bits((6, 24), 2)) // 8
    assert sum(value.nbytes for value in whole.stored().values()) == whole.nbytes
    assert torch.equal(whole.to("cpu").dequantize(), expected)
