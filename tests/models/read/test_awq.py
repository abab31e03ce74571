"""AutoAWQ's layouts, against a slow oracle and against bytes written by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from subeight.errors import ModelError
from subeight.models.read.awq import gemv_words
from subeight.models.read.quantized import quantized_tensors
from tests.models.read.linears import linear, stored
from tests.oracles.models_packing import awq_gemm, awq_gemv, dense

CONFIG = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "GEMM"}


def opened(parts, **changed):
    return quantized_tensors({**CONFIG, **changed}, stored(parts))


@given(rows=st.sampled_from([8, 40]), groups=st.integers(1, 3), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_gemm_comes_back(rows, groups, seed):
    made = linear(rows, 32 * groups, 4, groups, seed=seed)
    codes, plain = opened(awq_gemm(made.codes, made.zeros, made.scales))
    found = codes.read("model.up")
    assert np.array_equal(found.codes.int().numpy() + 8, made.codes)
    assert np.array_equal(found.zeros.int().numpy() + 8, made.zeros)
    expected = dense(made.codes, made.zeros, made.scales, np.arange(32 * groups) // 32)
    assert np.array_equal(plain["model.up.weight"].read().numpy(), expected)
    assert plain["model.up.weight"].shape == expected.shape


@pytest.mark.parametrize(("group", "words"), [(128, 1), (64, 2), (32, 4), (16, 8)])
def test_gemv_comes_back_with_its_padding(group, words):
    made = linear(8, 256, 4, 256 // group)
    assert gemv_words(256, group) == max(words, 256 // group // 8)
    parts = awq_gemv(made.codes, made.zeros, made.scales, gemv_words(256, group))
    _, plain = opened(parts, version="gemv", group_size=group)
    expected = dense(made.codes, made.zeros, made.scales, np.arange(256) // group)
    assert np.array_equal(plain["model.up.weight"].read().numpy(), expected)


def test_the_order_of_columns_in_a_word():
    # Nibbles from the lowest hold columns 0 2 4 6 1 3 5 7: codes equal to their column read back in order.
    word = sum(column << (4 * place) for place, column in enumerate((0, 2, 4, 6, 1, 3, 5, 7)))
    parts = {
        "qweight": torch.full((32, 1), word, dtype=torch.int32),
        "qzeros": torch.zeros(1, 1, dtype=torch.int32),
        "scales": torch.ones(1, 8, dtype=torch.float16),
    }
    codes, plain = opened(parts)
    assert plain["model.up.weight"].read()[:, 0].tolist() == list(range(8))
    assert codes.format_words("model.up") == "int4:g32:asym (awq)"
    assert codes.nbytes("model.up") == 32 * 4 + 4 + 16


@pytest.mark.parametrize(
    ("changed", "words"),
    [({"bits": 8}, "8 bits"), ({"version": "marlin"}, "marlin"), ({"group_size": 64}, "belong together")],
)
def test_what_does_not_fit_is_refused(changed, words):
    made = linear(8, 64, 4, 2)
    with pytest.raises(ModelError, match=words):
        opened(awq_gemm(made.codes, made.zeros, made.scales), **changed)[0].read("model.up")
