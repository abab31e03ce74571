"""Weights that try a format: outliers, zeros, tiny and large numbers, one-sided groups."""

import torch
from hypothesis import strategies as st
from torch import Tensor

from subeight.formats import Format

WEIGHT_FORMATS = [
    *(f"int{bits}:g16:{kind}" for bits in range(2, 9) for kind in ("sym", "asym")),
    "int4:g64:sym",
    "int4:g64:asym",
    "int3:channel:sym",
    "int4:channel:asym",
    "int8:channel:sym",
    "int8:tensor:sym",
    "int8:tensor:asym",
    "int8:token:sym",
    "int8:token:asym",
    "int4:g64:sym:fp16",
    "int4:g64:sym:fp32",
    "int4:g64:asym:fp32",
    "nf4:g64",
    "nf4:channel",
    "nf4:tensor:fp32",
    "fp8",
    "fp8:tensor",
    "fp8:token:fp32",
    "fp8:g128",
    "fp8_e5m2",
    "mxfp4",
    "nvfp4",
]
# 172 is a width of real models that no power of two divides
WIDTHS = (1, 31, 64, 100, 172)


def make_weight(seed: int, rows: int = 5, width: int = 172, size: float = 0.05) -> Tensor:
    """Normal numbers with an outlier, an all-zero stretch, a positive row and a tiny row."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, width, generator=generator) * size
    weight[0, width // 2] *= 40
    weight[1 % rows, : width // 2] = 0
    weight[2 % rows] = weight[2 % rows].abs()
    weight[3 % rows] *= 1e-6
    return weight


def formats() -> st.SearchStrategy[Format]:
    """Any of the formats above."""
    return st.sampled_from(WEIGHT_FORMATS).map(Format.parse)


def weights() -> st.SearchStrategy[Tensor]:
    """Weights of several shapes and sizes."""
    return st.builds(
        make_weight,
        seed=st.integers(0, 2**20),
        rows=st.integers(1, 6),
        width=st.sampled_from(WIDTHS),
        size=st.sampled_from((1e-3, 0.05, 1.0, 300.0)),
    )
