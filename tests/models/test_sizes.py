import pytest
import torch

from subeight.formats import Format
from subeight.models.sizes import Sizes
from subeight.models.stats import Stats
from tests.oracles.sizes import best_range, lost


def inputs_of(massive: float, tokens: int = 60, width: int = 24) -> torch.Tensor:
    """Ordinary tokens, and one with a channel as large as `massive`."""
    x = torch.randn(tokens, width, generator=torch.Generator().manual_seed(5))
    x[:, 3] *= 6
    if massive:
        x[7, 11] = massive
    return x


def sizes_of(x: torch.Tensor) -> Sizes:
    found = Sizes.none(x.shape[1], x.device)
    found.add(x)
    return found


@pytest.mark.parametrize("massive", [0.0, 40.0, 3000.0])
@pytest.mark.parametrize("bits", [8, 4])
def test_the_range_loses_as_little_as_the_best_of_the_oracle(massive, bits):
    x = inputs_of(massive)
    found = sizes_of(x).static_range(Format.parse(f"int{bits}:tensor"), float(x.abs().max()))
    least = lost(x.numpy(), best_range(x.numpy(), bits), bits)
    assert lost(x.numpy(), found, bits) <= 1.1 * least


def test_a_massive_token_is_clipped_only_where_all_others_gain_more():
    x, format = inputs_of(3000.0), Format.parse("int8:tensor")
    assert sizes_of(x).static_range(format, 3000.0) == 3000.0
    many = inputs_of(40.0, tokens=4000)
    found = sizes_of(many).static_range(Format.parse("int4:tensor"), 40.0)
    assert found < 30
    assert lost(many.numpy(), found, 4) < 0.8 * lost(many.numpy(), 40.0, 4)


def test_counted_in_parts_it_is_the_same():
    x, parts = inputs_of(40.0), Sizes.none(24, torch.device("cpu"))
    for part in x.split(7):
        parts.add(part)
    assert torch.allclose(parts.count, sizes_of(x).count, rtol=1e-5)
    assert torch.allclose(sizes_of(x[:30]).joined(sizes_of(x[30:])).count, parts.count, rtol=1e-5)


def test_divided_inputs_are_known_without_counting_again():
    x, format = inputs_of(0.0), Format.parse("int4:tensor")
    s = torch.ones(24)
    s[3], s[5] = 4.0, 0.5
    stats, divided = Stats.from_inputs(x).rescaled(s), x / s
    assert stats.absmax is not None and torch.allclose(stats.absmax, divided.abs().amax(0))
    least = lost(divided.numpy(), best_range(divided.numpy(), 4), 4)
    assert lost(divided.numpy(), stats.static_range(format), 4) <= 1.1 * least


def test_floats_keep_the_largest():
    x = inputs_of(3000.0)
    assert Stats.from_inputs(x).static_range(Format.parse("fp8:tensor")) == 3000.0


def test_nothing_but_zeros_has_a_range_of_zero():
    assert Stats.from_inputs(torch.zeros(4, 8)).static_range(Format.parse("int8:tensor")) == 0.0
