import os
import subprocess
import sys

import pytest
import torch

from subeight.errors import InputError
from subeight.models.precision import compute_dtype, exact_products, has_fast_bf16

CPU = torch.device("cpu")


def test_products_of_bf16_numbers_keep_float32_sums():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(64, 512, generator=generator).bfloat16() for _ in range(2))
    exact = a.double() @ b.double().T
    with exact_products(torch.bfloat16):
        got = a.float() @ b.float().T
    assert (got - exact).abs().max() < 1e-6 * exact.abs().max() * 10
    assert (a @ b.T - exact).abs().max() > 1e-4 * exact.abs().max()  # what a bf16 result would lose


def test_products_of_float32_numbers_are_not_rounded():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(64, 512, generator=generator) for _ in range(2))
    exact = a.double() @ b.double().T
    with exact_products(torch.float32):
        got = a @ b.T
    assert (got - exact).abs().max() < 1e-5 * exact.abs().max()


def test_the_setting_before_is_put_back():
    before = torch.backends.mkldnn.matmul.fp32_precision
    with pytest.raises(KeyError), exact_products(torch.bfloat16):
        raise KeyError
    assert torch.backends.mkldnn.matmul.fp32_precision == before


@pytest.mark.parametrize(
    ("told", "tiles", "vectors"),
    [
        ("AVX2", False, False),
        ("AVX512_CORE_BF16", False, True),
        ("avx512_core_amx", True, True),
        ("ALL", True, True),
        ("", True, True),
    ],
)
def test_what_onednn_was_told_decides(told, tiles, vectors, monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", told)
    for has_tiles, has_vectors in ((True, True), (False, True), (True, False), (False, False)):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda has=has_tiles: has)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=has_vectors: has)
        fast = (has_tiles and tiles) or (has_vectors and vectors)
        assert has_fast_bf16(CPU) is fast
        assert compute_dtype("auto", CPU) is (torch.bfloat16 if fast else torch.float32)


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("float32", torch.float32)])
def test_a_named_dtype_is_taken(name, dtype):
    assert compute_dtype(name, CPU) is dtype


def test_an_unknown_dtype_is_refused():
    with pytest.raises(InputError, match="'int3'; allowed are auto, bfloat16 and float32"):
        compute_dtype("int3", CPU)


WITHOUT_AMX = """
import sys, torch
from transformers import AutoModelForCausalLM
from subeight.models.model import Model
from subeight.models.precision import compute_dtype
from tests.models.conftest import plain, streamed
torch.set_num_threads(1)
dtype = compute_dtype("auto", torch.device("cpu"))
assert dtype is torch.float32, dtype
ids = torch.randint(0, 128, (2, 17), generator=torch.Generator().manual_seed(0))
for directory in sys.argv[1:]:
    made = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
    assert torch.equal(streamed(Model(directory), ids, dtype), plain(made, ids)), directory
print("equal")
"""


def test_without_amx_and_avx512(checkpoint):
    directories = [str(checkpoint(family)) for family in ("llama", "gpt2", "mixtral")]
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_AMX, *directories], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.strip() == "equal", done.stderr
