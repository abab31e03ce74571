"""In which precision a model runs, and products of bf16 numbers that keep float32 sums."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from subeight.errors import InputError

_NAMES = {"bfloat16": torch.bfloat16, "bf16": torch.bfloat16, "float32": torch.float32, "fp32": torch.float32}


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bf16 products are faster than float32 ones: tensor cores, or AMX or AVX-512 BF16 on a CPU."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    # The CPU may have them and oneDNN be told to leave them alone, as on laptops without.
    told = (os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "DEFAULT").upper()
    anything = told in ("DEFAULT", "ALL")
    tiles = torch.cpu._is_amx_tile_supported() and (anything or "AMX" in told)
    vectors = torch.cpu._is_avx512_bf16_supported() and (
        anything or any(name in told for name in ("AMX", "BF16", "FP16"))
    )
    return bool(tiles or vectors)


def compute_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the hardware multiplies it fast, float32 elsewhere."""
    if name == "auto":
        return torch.bfloat16 if has_fast_bf16(device) else torch.float32
    if name not in _NAMES:
        raise InputError(f"--dtype was given {name!r}; allowed are auto, bfloat16 and float32.")
    return _NAMES[name]


@contextmanager
def exact_products(dtype: torch.dtype) -> Iterator[None]:
    """Float32 matrix products; of tensors whose values are exact in bfloat16 (`dtype` says so) at the speed of AMX, or
    of tensor cores in TF32, which holds them too.

    A product of two bf16 numbers is exact in float32, in which both sum, so nothing is lost; with other values this
    would round them, so `dtype` must be the one that the operands came from.
    """
    cpu, gpu = torch.backends.mkldnn.matmul, torch.backends.cuda.matmul  # type: ignore[attr-defined]
    before = cpu.fp32_precision, gpu.fp32_precision
    exact = dtype == torch.bfloat16
    cpu.fp32_precision, gpu.fp32_precision = ("bf16", "tf32") if exact else ("ieee", "ieee")
    try:
        yield
    finally:
        cpu.fp32_precision, gpu.fp32_precision = before
