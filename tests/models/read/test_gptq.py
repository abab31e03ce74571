"""GPTQ's layouts: bytes packed by a slow oracle, both conventions of zero points, act-order, overrides, damage."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from subeight.errors import ModelError
from subeight.models.read.quantized import quantized_tensors
from tests.models.read.linears import linear, stored
from tests.oracles.models_packing import dense, gptq

CONFIG = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False, "checkpoint_format": "gptq"}


def opened(parts, **changed):
    return quantized_tensors({**CONFIG, **changed}, stored(parts))


@given(
    bits=st.sampled_from([2, 3, 4, 8]),
    v1=st.booleans(),
    rows=st.sampled_from([32, 64]),
    groups=st.integers(1, 3),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_codes_and_zero_points_of_every_width_come_back(bits, v1, rows, groups, seed):
    made = linear(rows, 32 * groups, bits, groups, seed=seed)
    parts = gptq(made.codes, made.zeros, made.scales, bits, v1=v1)
    codes, plain = opened(parts, bits=bits, checkpoint_format="gptq" if v1 else "gptq_v2")
    found = codes.read("model.up")
    assert np.array_equal(found.codes.int().numpy() + 2 ** (bits - 1), made.codes)
    assert np.array_equal(found.zeros.int().numpy() + 2 ** (bits - 1), made.zeros)
    assert found.format.scale_dtype == torch.float16
    expected = dense(made.codes, made.zeros, made.scales, np.arange(32 * groups) // 32)
    assert np.array_equal(plain["model.up.weight"].read().numpy(), expected)
    assert plain["model.up.weight"].shape == expected.shape


def test_bytes_written_by_hand():
    # Codes 0 to 7 of one column in one word, the lowest nibble first; zero points 8, stored as 7.
    word = 0x76543210
    parts = {
        "qweight": torch.full((4, 8), word, dtype=torch.int32),
        "qzeros": torch.full((1, 1), 0x77777777, dtype=torch.int32),
        "scales": torch.full((1, 8), 0.5, dtype=torch.float16),
    }
    codes, plain = opened(parts, sym=True)
    row = torch.arange(8).repeat(4).float()
    assert torch.equal(plain["model.up.weight"].read(), ((row - 8) * 0.5).expand(8, 32))
    assert codes.format_words("model.up") == "int4:g32:sym (gptq)"
    assert codes.read("model.up").zeros is None
    assert codes.nbytes("model.up") == 4 * 8 * 4 + 4 + 8 * 2


def test_three_bits_cross_words():
    values = [value % 8 for value in range(5, 37)]
    stream = sum(value << (3 * place) for place, value in enumerate(values))
    words = [(stream >> (32 * place)) & 0xFFFFFFFF for place in range(3)]
    signed = torch.tensor([word - 2**32 if word >= 2**31 else word for word in words], dtype=torch.int32)
    parts = {
        "qweight": signed[:, None].repeat(1, 32),
        "qzeros": torch.zeros(1, 3, dtype=torch.int32),
        "scales": torch.ones(1, 32, dtype=torch.float16),
    }
    _, plain = opened(parts, bits=3, checkpoint_format="gptq_v2")
    assert plain["model.up.weight"].read()[0].tolist() == values


def test_a_zero_point_of_zero_borrows_from_its_neighbour_in_v1():
    made = linear(32, 32, 4, 1)
    made.zeros[:] = [[place % 2] for place in range(32)]
    codes, _ = opened(gptq(made.codes, made.zeros, made.scales, 4, v1=True))
    assert np.array_equal(codes.read("model.up").zeros.numpy() + 8, made.zeros)


def test_a_symmetric_checkpoint_whose_zero_point_is_off_is_read_as_it_is():
    made = linear(32, 32, 4, 1, symmetric=True)
    made.zeros[3, 0] = 7
    codes, plain = opened(gptq(made.codes, made.zeros, made.scales, 4, v1=True), sym=True)
    assert not codes.read("model.up").format.symmetric
    expected = dense(made.codes, made.zeros, made.scales, np.zeros(32, dtype=int))
    assert np.array_equal(plain["model.up.weight"].read().numpy(), expected)


def test_columns_in_another_order_give_a_weight_but_no_codes():
    made = linear(32, 64, 4, 2)
    order = np.random.default_rng(1).permutation(np.arange(64) // 32).astype(np.int32)
    parts = {**gptq(made.codes, made.zeros, made.scales, 4, v1=True), "g_idx": order}
    codes, plain = opened(parts, desc_act=True)
    expected = dense(made.codes, made.zeros, made.scales, order)
    assert np.array_equal(plain["model.up.weight"].read().numpy(), expected)
    assert codes.format_words("model.up") == "int4:g32:asym (gptq, act-order)"
    with pytest.raises(ModelError, match="act-order"):
        codes.read("model.up")


def test_g_idx_in_natural_order_changes_nothing():
    made = linear(32, 64, 4, 2)
    parts = gptq(made.codes, made.zeros, made.scales, 4, v1=True)
    codes, _ = opened({**parts, "g_idx": (np.arange(64) // 32).astype(np.int32)})
    assert codes.read("model.up").shape == (32, 64)


def test_one_scale_per_channel():
    made = linear(32, 64, 8, 1)
    codes, _ = opened(gptq(made.codes, made.zeros, made.scales, 8, v1=False), bits=8, group_size=-1, format="gptq_v2")
    assert codes.format_words("model.up") == "int8:channel:asym (gptq)"


def test_overrides_of_single_modules_and_what_is_skipped():
    made = linear(32, 64, 8, 1)
    parts = stored(gptq(made.codes, made.zeros, made.scales, 8, v1=True), "model.layers.1.mlp.down_proj")
    kept = stored({"weight": torch.ones(4, 4)}, "model.layers.0.mlp.down_proj")
    dynamic = {r"-:model\.layers\.0\..*": {}, r"+:.*\.down_proj": {"bits": 8, "group_size": -1}}
    codes, plain = quantized_tensors({**CONFIG, "dynamic": dynamic}, {**parts, **kept})
    assert codes.names == ["model.layers.1.mlp.down_proj"]
    assert codes.format_words(codes.names[0]) == "int8:channel:asym (gptq)"
    assert torch.equal(plain["model.layers.0.mlp.down_proj.weight"].read(), torch.ones(4, 4))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"bits": 5}, "5 bits"),
        ({"group_size": 64}, "scales"),
        ({"group_size": "all"}, "groups of 'all'"),
        ({"checkpoint_format": "marlin"}, "marlin"),
        ({"dynamic": {"+:(": {}}}, "no valid pattern"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(changed, words):
    made = linear(32, 64, 4, 2)
    with pytest.raises(ModelError, match=words) as caught:
        opened(gptq(made.codes, made.zeros, made.scales, 4, v1=True), **changed)[0].read("model.up")
    assert str(caught.value).count(". ") == 0


def test_a_missing_part_is_named():
    made = linear(32, 64, 4, 2)
    parts = gptq(made.codes, made.zeros, made.scales, 4, v1=True)
    del parts["qzeros"]
    with pytest.raises(ModelError, match=r"lacks model\.up\.qzeros"):
        opened(parts)[0].read("model.up")


@pytest.mark.parametrize("part", ["qweight", "qzeros"])
def test_words_of_another_size_are_refused(part):
    made = linear(32, 64, 4, 2)
    parts = gptq(made.codes, made.zeros, made.scales, 4, v1=True)
    with pytest.raises(ModelError, match=rf"{part} is packed in torch\.int64"):
        opened({**parts, part: parts[part].astype(np.int64)})[0].read("model.up")


def test_groups_that_do_not_exist_are_refused():
    made = linear(32, 64, 4, 2)
    parts = {**gptq(made.codes, made.zeros, made.scales, 4, v1=True), "g_idx": np.full(64, 5, dtype=np.int32)}
    with pytest.raises(ModelError, match="damaged"):
        opened(parts)[0].dense("model.up")
