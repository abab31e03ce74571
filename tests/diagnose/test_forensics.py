from dataclasses import replace

import pytest
import torch

from subeight.diagnose.forensics import (
    examine_codes,
    examine_dense,
    fresh,
    heads_of,
    low_rank_share,
    order_of,
    worst_groups,
)
from subeight.formats import Format, Scales, quantize
from tests.oracles.diagnose_forensics import excess

FORMATS = ["int2:g32", "int3:g32:asym", "int4:g32", "int4:channel", "int8:g64", "nf4:g32", "fp8"]
INT4, AFFINE = Format.parse("int4:g32"), Format.parse("int4:g32:asym")


def drawn(seed=0, rows=64, width=96):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def neighbour(weight, size, seed=5):
    return weight + size * drawn(seed, *weight.shape)


def fed_back(weight, format):
    """Rounding that pushes each column's error into the next one, as GPTQ does (with one neighbour, half of it)."""
    left = weight.clone()
    scales = quantize(weight, format)
    for column in range(weight.shape[1] - 1):
        rounded = quantize(left, format, Scales(scales.scales, scales.zeros)).dequantize()
        left[:, column + 1] += 0.5 * (left[:, column] - rounded[:, column])
        left[:, column] = rounded[:, column]
    return quantize(left, format, Scales(scales.scales, scales.zeros))


@pytest.mark.parametrize("text", FORMATS)
@pytest.mark.parametrize("search", ["absmax", "mse"])
def test_plain_rounding_is_plausible(text, search):
    verdict = examine_codes(drawn(), quantize(drawn(), Format.parse(text), search=search))
    assert verdict.kind == "rounding"
    assert verdict.excess <= 1.001


@pytest.mark.parametrize("text", ["int2:g32", "int3:g32", "int4:g32", "int4:g32:asym", "int8:g32"])
def test_error_feedback_is_plausible(text):
    verdict = examine_codes(drawn(), fed_back(drawn(), Format.parse(text)))
    assert verdict.kind == "rounding"
    assert verdict.excess > 1.02


@pytest.mark.parametrize("text", ["int4:g32", "int3:g64:asym"])
def test_the_excess_is_the_oracles(text):
    format = Format.parse(text)
    stored = quantize(neighbour(drawn(), 0.05), format)
    verdict = examine_codes(drawn(), stored)
    whole, typical = excess(drawn(), stored.dequantize(), fresh(drawn(), format), format.group)
    assert verdict.excess == pytest.approx(whole, rel=1e-4)
    assert verdict.typical == pytest.approx(typical, rel=1e-4)


def test_wrong_scales():
    stored = quantize(drawn(), INT4)
    factors = torch.linspace(0.5, 2, stored.scales.numel()).view_as(stored.scales)
    assert examine_codes(drawn(), replace(stored, scales=stored.scales * factors)).kind == "scales"


def test_too_narrow_scales_that_clip():
    stored = quantize(drawn(), INT4, Scales(quantize(drawn(), INT4).scales * 0.3))
    assert examine_codes(drawn(), stored).kind == "scales"


def test_wrong_zero_points():
    stored = quantize(drawn(), AFFINE)
    assert examine_codes(drawn(), replace(stored, zeros=(stored.zeros + 1).clamp(-8, 7))).kind == "zeros"


def test_a_few_broken_groups_leave_the_typical_one_alone():
    stored = quantize(drawn(), INT4)
    scales = stored.scales.clone()
    scales[:3] *= 3
    verdict = examine_codes(drawn(), replace(stored, scales=scales))
    assert verdict.kind == "scales"
    assert verdict.typical <= 1.001


def test_another_weight():
    verdict = examine_codes(drawn(), quantize(drawn(9), INT4))
    assert verdict.kind == "stale"
    assert "correlation" in verdict.words


@pytest.mark.parametrize("size", [0.3, 0.5])
def test_a_fine_tuned_neighbour(size):
    verdict = examine_codes(drawn(), quantize(neighbour(drawn(), size), INT4))
    assert verdict.kind == "stale"


def test_a_near_neighbour_shows_in_all_of_its_groups():
    verdict = examine_codes(drawn(), quantize(neighbour(drawn(), 0.08), INT4))
    assert verdict.kind == "rounding"
    assert verdict.even > 1.04
    assert verdict.mended == "stale"


def test_slightly_wrong_scales_are_told_from_a_neighbour():
    stored = quantize(drawn(), INT4)
    verdict = examine_codes(drawn(), replace(stored, scales=stored.scales * 1.1))
    assert (verdict.kind, verdict.mended) == ("rounding", "scales")


@pytest.mark.parametrize("by_columns", [False, True])
def test_another_order(by_columns):
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    weight = drawn(0, 64, 64)
    moved = weight[:, order] if by_columns else weight[order]
    verdict = examine_codes(weight, quantize(moved, INT4))
    assert (verdict.kind, verdict.by_columns) == ("permuted", by_columns)
    assert torch.equal(verdict.order, order)


def test_a_transposed_weight():
    weight = drawn(0, 64, 64)
    assert "transposed" in examine_codes(weight, quantize(weight.T.contiguous(), INT4)).words


def test_a_dense_weight_against_what_is_usual():
    found = fresh(drawn(), INT4)
    unit = float((drawn() - found).norm())
    assert examine_dense(drawn(), found, unit).kind == "rounding"
    assert examine_dense(drawn(), drawn(9), unit).kind == "stale"


def test_an_order_needs_likeness_and_is_not_the_same_order():
    assert order_of(drawn(), drawn()) is None
    assert order_of(drawn(), drawn(9)) is None


def test_orders_of_heads():
    order = torch.arange(32).view(4, 8)[[1, 0, 2, 3]].flatten()
    assert heads_of(order, 8) == [1, 0, 2, 3]
    assert heads_of(order, 16) is None
    assert heads_of(order.roll(1), 8) is None
    assert heads_of(order, None) is None


def test_noise_is_of_full_rank_and_an_update_is_not():
    weight = drawn(0, 128, 128)
    assert low_rank_share(weight, neighbour(weight, 0.3)) < 0.3
    update = drawn(1, 128, 4) @ drawn(2, 4, 128)
    assert low_rank_share(weight, neighbour(weight, 0.3) + 0.3 * update) > 0.6


def test_a_few_wrong_groups_are_told_apart():
    weight = drawn(rows=256, width=1536)
    stored = quantize(weight, Format.parse("int4:g64:asym"), search="mse")
    assert worst_groups(weight, stored) is None
    zeros = stored.zeros.clone()
    zeros[:, 3] = (zeros[:, 3] + 1).clamp(-8, 7)
    moved = replace(stored, zeros=zeros)
    assert examine_codes(weight, moved).kind == "rounding"  # one group of 24 is hidden by the others
    assert worst_groups(weight, moved) == "zeros"
    scales = stored.scales.scales.clone() if isinstance(stored.scales, Scales) else stored.scales.clone()
    scales[:, 3] *= 1.5
    assert worst_groups(weight, replace(stored, scales=scales)) == "scales"
    codes = stored.codes.clone()
    codes[:, 64:128] = codes[:, 64:128].flip(1)
    assert worst_groups(weight, replace(stored, codes=codes)) is None
