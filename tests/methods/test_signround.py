import numpy as np
import pytest
import torch

from subeight.errors import RecipeError
from subeight.formats import Format, quantize
from subeight.methods.round.signround import SignRound, _Rounding
from subeight.methods.tune import BlockTask
from tests.methods import problems
from tests.oracles.signround import Linear


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def task_of(problem: problems.Problem, format: str, batches: int = 4, dtype: torch.dtype = torch.float32) -> BlockTask:
    """One linear as a block: what it reads is the same in both models."""
    inputs = problem.inputs.to(dtype).split(len(problem.inputs) // batches)[:batches]
    return BlockTask(
        weights={"linear": problem.weight},
        formats={"linear": Format.parse(format)},
        targets=[(x @ problem.weight.to(dtype).T)[None] for x in inputs],
        output=lambda weights, number: (inputs[number] @ weights["linear"].to(dtype).T)[None],
    )


@pytest.mark.parametrize("text", ["int4:g12:asym:fp32", "int2:g12:asym:fp32", "int3:g24:sym:fp32"])
def test_steps_of_the_oracle(text):
    problem, format = problems.make(), Format.parse(text)
    task = task_of(problem, text, dtype=torch.float64)
    linears = {"linear": _Rounding.of(problem.weight, format)}
    oracle = Linear(problem.weight.double().numpy(), format.group, format.code_bits, not format.symmetric)
    assert oracle.peak == format.values.peak or not format.symmetric
    with torch.no_grad():  # away from the full range, where every group's extreme lies half-way between two codes
        linears["linear"].below.fill_(0.93)
        linears["linear"].above.fill_(0.9)
    oracle.below[:], oracle.above[:] = 0.93, 0.9
    method = SignRound(steps=10)
    for step in range(6):
        batch, size = step % 4, method._size(step)
        method._step(task, linears, batch, size)
        x = problem.inputs.double().numpy()[batch * 75 : (batch + 1) * 75]
        oracle.step(x, x @ problem.weight.double().numpy().T, size)
    rounding = linears["linear"]
    for mine, theirs in (
        (rounding.offset, oracle.offset),
        (rounding.below, oracle.below),
        (rounding.above, oracle.above),
    ):
        near = np.isclose(mine.detach().numpy(), theirs, atol=1e-5)
        assert near.mean() > 0.98  # a sign may differ where the gradient is about 0, and a code at a tie
    codes, _, _ = oracle.rounded()
    found = rounding.codes(rounding.kept()).codes.numpy()
    assert (found == codes.reshape(found.shape)).mean() > 0.98


@pytest.mark.parametrize("text", ["int4:g16", "int3:g32:asym", "int2:g16:asym", "int8:channel", "int4:g32:asym:fp16"])
def test_what_is_trained_is_what_is_stored(text):
    rounding = _Rounding.of(problems.make().weight, Format.parse(text))
    with torch.no_grad():
        rounding.offset.uniform_(-0.5, 0.5, generator=generator())
        rounding.below.uniform_(0.6, 1.0, generator=generator())
    assert torch.equal(rounding.weight().detach(), rounding.codes(rounding.kept()).dequantize())


def test_it_starts_from_plain_rounding():
    for text in ("int4:g16", "int3:g32:asym", "int8:channel", "int4:tensor"):
        weight, format = problems.make().weight, Format.parse(text)
        rounding = _Rounding.of(weight, format)
        assert torch.equal(rounding.codes(rounding.kept()).dequantize(), quantize(weight, format).dequantize())


@pytest.mark.parametrize("text", ["int3:g24:sym", "int2:g24:asym"])
def test_it_beats_plain_rounding_on_other_inputs_too(text):
    problem = problems.make(rows=24, tokens=1600)
    notes: dict = {}
    task = task_of(problems.Problem(problem.weight, problem.inputs[:800]), text)
    rounded = SignRound().tune(task, generator(), notes)["linear"].dequantize()
    plain = quantize(problem.weight, Format.parse(text)).dequantize()
    fresh = problem.inputs[800:]
    errors = [problems.output_error(problem.weight, w, fresh) for w in (rounded, plain)]
    assert notes["loss"] < 0.95 * notes["plain"] and errors[0] < 0.97 * errors[1]


def test_the_same_seed_gives_the_same_codes_and_nothing_given_is_changed():
    problem = problems.make()
    before = problem.weight.clone()
    one, other = (SignRound(steps=12).tune(task_of(problem, "int3:g24"), generator(), {})["linear"] for _ in range(2))
    assert torch.equal(one.codes, other.codes) and torch.equal(one.scales, other.scales)
    assert torch.equal(problem.weight, before) and not one.dequantize().requires_grad


def test_it_is_never_worse_than_plain_rounding():
    """Steps so large that they only do harm: the plain codes come back."""
    problem, notes = problems.make(), {}
    task = task_of(problem, "int8:g24:asym", batches=1)
    rounded = SignRound(steps=1, rate=0.5).tune(task, generator(), notes)["linear"]
    assert notes["loss"] <= notes["plain"]
    assert torch.equal(rounded.codes, quantize(problem.weight, Format.parse("int8:g24:asym")).codes)


def test_ranges_stay_as_they_are_where_they_are_not_learned():
    problem = problems.make()
    rounded = SignRound(steps=20, clip=False).tune(task_of(problem, "int3:g24"), generator(), {})["linear"]
    assert torch.equal(rounded.scales, quantize(problem.weight, Format.parse("int3:g24")).scales)


def test_grids_without_integers_are_refused():
    with pytest.raises(RecipeError, match=r"rounds to integers, and nf4:g24.* has none; choose gptq or rtn"):
        SignRound().tune(task_of(problems.make(), "nf4:g24"), generator(), {})
