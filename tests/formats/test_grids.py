"""Grids against their bits: every value, every boundary, every tie."""

import math
from itertools import pairwise

import pytest
import torch

from subeight.formats import GRIDS
from tests.oracles.formats_numbers import E4M3, E5M2, FP4, grid_values, nf4, round_to


def _probes(name: str) -> torch.Tensor:
    """Every value of the grid, every middle, the float32 neighbours of both, and what lies beyond."""
    values = sorted(set(grid_values(name)))
    middles = [(a + b) / 2 for a, b in pairwise(values)]
    exact = torch.tensor([*values, *middles], dtype=torch.float32)
    infinity = torch.tensor(math.inf)
    far = torch.tensor([0.0, -0.0, 1e30, -1e30, math.inf, -math.inf, 1e-30, -1e-30])
    around = [exact, torch.nextafter(exact, infinity), torch.nextafter(exact, -infinity), far]
    return torch.cat([*around, torch.linspace(values[0] * 1.2, values[-1] * 1.2, 20001)])


@pytest.mark.parametrize("name", sorted(GRIDS))
def test_codes_are_the_nearest_values(name: str) -> None:
    grid = GRIDS[name]
    probes = _probes(name)
    values = torch.tensor(sorted(set(grid_values(name))), dtype=torch.float64)
    exact = probes.double().clamp(values[0], values[-1])
    found = grid.values(grid.codes(probes.clone())).double()
    nearest = (exact[:, None] - values).abs().amin(1)
    # the published nf4 numbers are the quantiles in float32
    slack = 3e-7 if name == "nf4" else 0.0
    assert bool(((exact - found).abs() <= nearest + slack).all())
    assert bool(((found[:, None] - values).abs().amin(1) <= slack).all())


@pytest.mark.parametrize("name", sorted(GRIDS))
def test_snap_is_codes_and_values(name: str) -> None:
    grid, probes = GRIDS[name], _probes(name)
    codes = grid.codes(probes.clone())
    assert codes.dtype == grid.code_dtype
    assert torch.equal(grid.snap(probes.clone()), grid.values(codes))


@pytest.mark.parametrize("name", sorted(GRIDS))
def test_values_of_the_grid_stay(name: str) -> None:
    values = torch.tensor(sorted(set(grid_values(name))), dtype=torch.float32)
    grid = GRIDS[name]
    torch.testing.assert_close(
        grid.values(grid.codes(values.clone())), values, rtol=0, atol=3e-7 if name == "nf4" else 0
    )


@pytest.mark.parametrize(("name", "by_code"), [("fp8", E4M3), ("fp8_e5m2", E5M2), ("mxfp4", FP4), ("nvfp4", FP4)])
def test_small_floats_round_ties_to_even(name: str, by_code: list[float]) -> None:
    grid = GRIDS[name]
    probes = _probes(name)[:2000]
    found = grid.values(grid.codes(probes.clone())).tolist()
    assert found == [round_to(x, by_code) if x else 0.0 for x in probes.tolist()]


@pytest.mark.parametrize("name", ["mxfp4", "nvfp4"])
def test_fp4_codes_are_the_bits_of_e2m1(name: str) -> None:
    codes = torch.arange(16, dtype=torch.uint8)
    grid = GRIDS[name]
    values = grid.values(codes)
    assert values.tolist() == FP4
    # code 8 is a negative zero, which never arises
    assert grid.codes(values.clone()).tolist() == [*range(8), 0, *range(9, 16)]


def test_fp8_codes_are_the_bits_of_torch() -> None:
    for name, by_code in (("fp8", E4M3), ("fp8_e5m2", E5M2)):
        codes = torch.arange(256, dtype=torch.uint8).view(GRIDS[name].code_dtype)
        expected = [math.nan if math.isnan(v) else v for v in by_code]
        finite = [i for i, v in enumerate(expected) if not math.isnan(v)]
        found = GRIDS[name].values(codes).tolist()
        assert [found[i] for i in finite] == [expected[i] for i in finite]


def test_nf4_is_the_papers_quantiles() -> None:
    codes = torch.arange(16, dtype=torch.uint8)
    assert GRIDS["nf4"].values(codes).tolist() == pytest.approx(nf4(), abs=1e-6)


@pytest.mark.parametrize("name", ["nf4", "mxfp4"])
def test_a_cell_holds_at_most_one_boundary(name: str) -> None:
    grid = GRIDS[name]
    middles = [(a + b) / 2 * grid.cells_per_unit for a, b in pairwise(grid.ascending)]
    half = (2 * (math.ceil(grid.ascending[-1] * grid.cells_per_unit) + 1) + 1) / 2
    cells = [math.floor(m + half) for m in middles]
    assert len(set(cells)) == len(cells)
    # a boundary keeps away from the edges of its cell, where float32 could miss it
    assert all(0.01 < (m + half) % 1 < 0.99 for m in middles)
