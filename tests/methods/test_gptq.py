import numpy as np
import pytest
import torch

from subeight.errors import InputError, SubeightError
from subeight.formats import Format, Scales, find_scales, quantize
from subeight.methods.base import build
from subeight.methods.round import gptq as module
from subeight.methods.round.gptq import Gptq
from subeight.models.stats import Stats
from tests.methods import problems
from tests.oracles.gptq import costs, gptq
from tests.oracles.rtn import grid_values

GENERATOR = torch.Generator()
FORMATS = ["int4:g16", "int3:g20:sym", "int3:g32:asym", "int2:g16", "int8:channel", "nf4:g16", "fp8", "mxfp4", "nvfp4"]


def oracle(problem, format, damping=0.01, by_activation=True, scales=None):
    width = problem.weight.shape[1]
    found = scales if scales is not None else find_scales(problem.weight, format)
    numbers = problems.plain(found, format, width)
    grid = grid_values(format.grid)
    return gptq(problem.weight.double().numpy(), problem.hessian, *numbers, grid, damping, by_activation)


def matches(rounded, expected) -> bool:
    # equal codes differ by the float32 rounding of code * scale; another code differs by a whole step
    return np.allclose(rounded.dequantize().numpy(), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("order", ["activation", "columns"])
@pytest.mark.parametrize("text", FORMATS)
def test_codes_of_the_oracle(text, order):
    problem, format = problems.make(width=150), Format.parse(text)
    rounded = Gptq(order=order, search="absmax").round(problem.weight, format, problem.stats, GENERATOR)
    assert matches(rounded, oracle(problem, format, by_activation=order == "activation"))


@pytest.mark.parametrize("block", [1, 7, 64, 1000])
def test_blocks_do_not_change_the_codes(block, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", block)
    problem, format = problems.make(), Format.parse("int3:g16")
    assert matches(
        Gptq(search="absmax").round(problem.weight, format, problem.stats, GENERATOR), oracle(problem, format)
    )


@pytest.mark.parametrize("by_activation", [True, False])
def test_output_search_weighs_columns_by_the_oracles_costs(by_activation):
    problem, format = problems.make(), Format.parse("int3:g16")
    method = Gptq(search="output", order="activation" if by_activation else "columns")
    weighed = torch.tensor(costs(problem.hessian, 0.01, by_activation), dtype=torch.float32)
    scales = find_scales(problem.weight, format, search="mse", importance=weighed, signed=True)
    assert not torch.equal(scales.scales, find_scales(problem.weight, format, search="mse", signed=True).scales)
    rounded = method.round(problem.weight, format, problem.stats, GENERATOR)
    assert torch.equal(rounded.scales, scales.scales)
    assert matches(rounded, oracle(problem, format, by_activation=by_activation, scales=scales))


def test_costs_are_the_loss_that_is_left():
    """tr(E H E^T) of GPTQ is the sum over columns of cost times squared last-moment error: here for one column off."""
    problem = problems.make()
    order = torch.argsort(problem.stats.hessian.diagonal(), descending=True, stable=True)
    _, found = Gptq(search="absmax")._factor(problem.stats.hessian, order, {})
    assert np.allclose(found.numpy(), costs(problem.hessian, 0.01, True), rtol=1e-3)
    damped = problem.hessian + 0.01 * np.mean(np.diag(problem.hessian)) * np.eye(72)
    first = int(order[0])
    others = [j for j in range(72) if j != first]
    # the best that the other columns can do about an error of one in the first column: the Schur complement
    across = damped[first, others]
    left = damped[first, first] - across @ np.linalg.solve(damped[np.ix_(others, others)], across)
    assert float(found[first]) == pytest.approx(left, rel=1e-3)


def test_output_search_beats_absmax_at_few_bits():
    problem, format = problems.make(rows=48, width=144, tokens=600), Format.parse("int2:g16")
    errors = [
        problems.output_error(
            problem.weight, Gptq(search=s).round(problem.weight, format, problem.stats, GENERATOR).dequantize(), x
        )
        for s in ("output", "absmax")
        for x in (problem.inputs,)
    ]
    assert errors[0] < 0.9 * errors[1]


class TestPlantedErrors:
    """Each of these mistakes must change the codes, or the comparison with the oracle would prove nothing."""

    problem, format = problems.make(), Format.parse("int3:g16")

    def solve(self, feedback=None, scales=None, order=None, **options):
        method, stats = Gptq(**options), self.problem.stats
        true_order = torch.argsort(stats.hessian.diagonal(), descending=True, stable=True)
        found, _ = method._factor(stats.hessian, true_order, {})
        scales = find_scales(self.problem.weight, self.format) if scales is None else scales
        order = true_order if order is None else order
        codes = module.solve(
            self.problem.weight, self.format, scales, found if feedback is None else feedback(found), order
        )
        return codes, oracle(self.problem, self.format)

    def differs(self, **planted) -> bool:
        codes, expected = self.solve(**planted)
        scale, _ = find_scales(self.problem.weight, self.format).expand(self.format, 72)
        return not np.allclose((codes * scale).numpy(), expected, rtol=1e-6, atol=1e-9)

    def test_nothing_planted(self):
        assert not self.differs()

    def test_transposed_factor(self):
        assert self.differs(feedback=lambda f: f.T.contiguous())

    def test_wrong_sign(self):
        assert self.differs(feedback=torch.neg)

    def test_factor_not_normalised_by_row(self):
        assert self.differs(feedback=lambda f: f / f.norm(dim=1, keepdim=True))

    def test_no_feedback(self):
        assert self.differs(feedback=lambda f: torch.eye(len(f)))

    def test_missing_damping(self):
        assert self.differs(damping=0.0)

    def test_group_of_the_place_instead_of_the_column(self):
        scales = find_scales(self.problem.weight, self.format)
        assert self.differs(scales=Scales(scales.scales.roll(1, 1)))

    def test_factor_of_another_order(self):
        assert self.differs(order=torch.arange(72))

    def test_inverse_forgotten(self):
        def upper(found):
            hessian = self.problem.stats.hessian
            order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
            factor = torch.linalg.cholesky(hessian[order][:, order])
            return factor / factor.diagonal()[:, None]

        assert self.differs(feedback=upper)


def test_orthogonal_inputs_leave_plain_rounding():
    weight = problems.make().weight
    stats = Stats(1, hessian=torch.eye(72))
    for text in ("int4:g16", "int4:g16:asym", "nf4:g16", "fp8"):
        rounded = Gptq(search="absmax").round(weight, Format.parse(text), stats, GENERATOR)
        plain = quantize(weight, Format.parse(text))
        assert torch.equal(rounded.codes.view(torch.uint8), plain.codes.view(torch.uint8))


@pytest.mark.parametrize("damping", [0.0, 0.01])
def test_columns_that_were_never_fed_are_rounded_plainly(damping):
    problem, format = problems.make(), Format.parse("int4:g16")
    problem.inputs[:, [3, 40]] = 0
    notes = {}
    rounded = Gptq(damping=damping, search="absmax").round(problem.weight, format, problem.stats, GENERATOR, notes)
    plain = quantize(problem.weight, format)
    assert torch.equal(rounded.codes[:, [3, 40]], plain.codes[:, [3, 40]])
    assert notes["dead"] == 2
    assert matches(rounded, oracle(problem, format, damping=damping))


def test_inputs_that_were_all_zero():
    weight, notes = problems.make().weight, {}
    rounded = Gptq(search="absmax").round(
        weight, Format.parse("int4:g16"), Stats(5, torch.zeros(72, 72)), GENERATOR, notes
    )
    assert torch.equal(rounded.codes, quantize(weight, Format.parse("int4:g16")).codes)
    assert notes["dead"] == 72


def test_damping_adapts_and_says_so():
    """Fewer tokens than channels: no factor without damping, and the oracle agrees about the damping that was used."""
    problem, format, notes = problems.make(tokens=20), Format.parse("int4:g16"), {}
    rounded = Gptq(damping=0.0, search="absmax").round(problem.weight, format, problem.stats, GENERATOR, notes)
    assert notes["damping"] > 0
    assert notes["precision"] in ("float32", "float64")
    assert matches(rounded, oracle(problem, format, damping=notes["damping"]))


def test_damping_that_does_is_left_alone():
    problem, notes = problems.make(), {}
    Gptq(search="absmax").round(problem.weight, Format.parse("int4:g16"), problem.stats, GENERATOR, notes)
    assert notes == {"dead": 0, "damping": 0.01, "precision": "float32"}


def test_float64_before_more_damping(monkeypatch):
    """Where float32 cannot factor, float64 is asked with the same damping before the damping is raised."""
    real, asked = torch.linalg.cholesky_ex, []

    def fails_in_float32(matrix, *, upper):
        asked.append((matrix.dtype, float(matrix[0, 0])))
        factor, failed = real(matrix, upper=upper)
        return factor, torch.ones_like(failed) if matrix.dtype == torch.float32 else failed

    monkeypatch.setattr(torch.linalg, "cholesky_ex", fails_in_float32)
    problem, format, notes = problems.make(), Format.parse("int4:g16"), {}
    rounded = Gptq(search="absmax").round(problem.weight, format, problem.stats, GENERATOR, notes)
    assert [dtype for dtype, _ in asked] == [torch.float32, torch.float64]
    assert asked[0][1] == pytest.approx(asked[1][1], rel=1e-6)
    assert (notes["damping"], notes["precision"]) == (0.01, "float64")
    assert matches(rounded, oracle(problem, format))


def test_a_hessian_that_is_none_is_refused_after_the_attempts():
    hessian = -torch.eye(72)
    with pytest.raises(SubeightError, match=r"even with damping 0\.1 of its mean diagonal"):
        Gptq(attempts=1).round(problems.make().weight, Format.parse("int4:g16"), Stats(1, hessian), GENERATOR)


def test_bad_statistics_are_named():
    weight, format = problems.make().weight, Format.parse("int4:g16")
    for stats in (None, Stats(1)):
        with pytest.raises(InputError, match="without a Hessian; give calibration text or choose rtn"):
            Gptq(search="absmax").round(weight, format, stats, GENERATOR)
    with pytest.raises(InputError, match=r"\(3, 3\).*72 columns"):
        Gptq(search="absmax").round(weight, format, Stats(1, torch.eye(3)), GENERATOR)
    with pytest.raises(InputError, match="NaN or Inf"):
        Gptq(search="absmax").round(weight, format, Stats(1, torch.eye(72).fill_(torch.nan)), GENERATOR)


@pytest.mark.parametrize("text", ["int4:g16", "int3:g16:asym", "int2:g16", "nf4:g16", "mxfp4"])
def test_beats_rounding_to_nearest(text):
    problem, format = problems.make(rows=48, width=144, tokens=600), Format.parse(text)
    fresh = problems.make(rows=48, width=144, tokens=1200).inputs[600:]  # same channels, other tokens
    errors = [
        problems.output_error(
            problem.weight, build(m).round(problem.weight, format, problem.stats, GENERATOR).dequantize(), x
        )
        for x in (problem.inputs, fresh)
        for m in ("gptq", "rtn")
    ]
    assert errors[0] < 0.8 * errors[1]
    assert errors[2] < 0.8 * errors[3]


def drifted(seed=1):
    """A problem whose baseline reads other inputs: a part of them has been lost on the way."""
    problem = problems.make(rows=24, width=72, tokens=600)
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.eye(72) + 0.3 * torch.randn(72, 72, generator=generator) / 72**0.5
    exact = problem.inputs @ mixing + 0.1 * torch.randn(problem.inputs.shape, generator=generator)
    stats = problem.stats
    stats.drift = 2 / 600 * (exact - problem.inputs).T @ problem.inputs
    return problem, exact, stats


def test_the_baselines_outputs_are_met_by_least_squares():
    problem, exact, stats = drifted()
    x, y = problem.inputs.double().numpy(), (exact.double() @ problem.weight.double().T).numpy()
    damping = 0.01 * np.mean(np.diag(problem.hessian)) * len(x) / 2
    # ridge around the weight itself: what no input says stays as it was
    rest = y - x @ problem.weight.double().numpy().T
    expected = problem.weight.double().numpy() + np.linalg.solve(x.T @ x + damping * np.eye(72), x.T @ rest).T
    assert np.allclose(module._retargeted(problem.weight, stats, 0.01).numpy(), expected, atol=1e-5)


def test_baseline_target_is_gptq_of_the_moved_weight_and_nearer_to_the_baselines_outputs():
    problem, exact, stats = drifted()
    format, notes = Format.parse("int4:g16"), {}
    rounded = Gptq(target="baseline").round(problem.weight, format, stats, GENERATOR, notes)
    moved = module._retargeted(problem.weight, stats, 0.01)
    assert torch.equal(rounded.codes, Gptq().round(moved, format, problem.stats, GENERATOR).codes)
    plain = Gptq().round(problem.weight, format, problem.stats, GENERATOR)
    wanted = exact @ problem.weight.T
    errors = [float((problem.inputs @ q.dequantize().T - wanted).square().sum()) for q in (rounded, plain)]
    assert errors[0] < 0.5 * errors[1] and notes["target"] == "baseline"


def test_without_a_drift_the_weight_is_the_target_and_it_says_so():
    problem, notes = problems.make(), {}
    format = Format.parse("int4:g16")
    rounded = Gptq(target="baseline").round(problem.weight, format, problem.stats, GENERATOR, notes)
    assert notes["target"] == "weight"
    assert torch.equal(rounded.codes, Gptq().round(problem.weight, format, problem.stats, GENERATOR).codes)


@pytest.mark.parametrize("wrong", [lambda d: d.T, lambda d: -d])
def test_a_drift_the_wrong_way_would_be_seen(wrong):
    problem, exact, stats = drifted()
    right = module._retargeted(problem.weight, stats, 0.01)
    stats.drift = wrong(stats.drift).contiguous()
    wanted = exact @ problem.weight.T
    errors = [
        float((problem.inputs @ w.T - wanted).square().sum())
        for w in (right, module._retargeted(problem.weight, stats, 0.01))
    ]
    assert errors[1] > 1.5 * errors[0]
