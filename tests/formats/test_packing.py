"""Packing: the round trip of every width, against one long binary number and against compressed-tensors."""

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from hypothesis import given, settings
from hypothesis import strategies as st

from subeight.errors import FormatError
from subeight.formats import pack, unpack
from tests.oracles.formats_numbers import pack_bits


def _codes(seed: int, bits: int, rows: int, columns: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    half = 2 ** (bits - 1)
    return torch.randint(-half, half, (rows, columns), generator=generator, dtype=torch.int8)


@given(st.integers(0, 2**20), st.integers(1, 8), st.integers(1, 5), st.integers(1, 180))
@settings(max_examples=200, deadline=None)
def test_round_trip_of_every_width(seed: int, bits: int, rows: int, columns: int) -> None:
    codes = _codes(seed, bits, rows, columns)
    packed = pack(codes, bits)
    assert packed.shape == (rows, -(-columns * bits // 32))
    assert torch.equal(unpack(packed, bits, columns), codes)
    unsigned = (codes.to(torch.int16) + 2 ** (bits - 1)).to(torch.uint8)
    assert torch.equal(pack(unsigned, bits), packed)
    assert torch.equal(unpack(packed, bits, columns, signed=False), unsigned)


@pytest.mark.parametrize("bits", range(1, 9))
def test_one_long_binary_number(bits: int) -> None:
    codes = _codes(bits, bits, 3, 77)
    expected = [pack_bits([code + 2 ** (bits - 1) for code in row], bits) for row in codes.tolist()]
    assert pack(codes, bits).tolist() == expected


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("columns", [1, 32, 64, 172])
def test_the_layout_of_compressed_tensors(bits: int, columns: int) -> None:
    codes = _codes(columns, bits, 7, columns)
    theirs = pack_to_int32(codes, bits)
    assert torch.equal(pack(codes, bits), theirs)
    assert torch.equal(unpack(theirs, bits, columns), unpack_from_int32(theirs, bits, codes.shape))
    # zero points are packed along the rows
    assert torch.equal(pack(codes.T.contiguous(), bits).T, pack_to_int32(codes, bits, packed_dim=0))


def test_what_cannot_be_packed() -> None:
    codes = _codes(0, 4, 2, 8)
    with pytest.raises(FormatError, match="1 to 8"):
        pack(codes, 9)
    with pytest.raises(FormatError, match="int8"):
        pack(codes.to(torch.int32), 4)
    with pytest.raises(FormatError, match="words"):
        unpack(pack(codes, 4), 4, 9)
