import numpy as np
import pytest
import torch

from subeight.errors import RecipeError
from subeight.formats import Format, quantize
from subeight.methods.base import Round, build
from subeight.methods.round.signround import SignRound, _Learned
from subeight.methods.tune import BlockTask
from subeight.models.stats import Stats
from tests.contract.methods import task_of as block_of
from tests.methods import problems
from tests.oracles.signround import Linear


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def task_of(problem: problems.Problem, text: str, batches: int = 4, start: str = "gptq") -> BlockTask:
    """One linear as a block, rounded by `start`: what it reads is the same in both models."""
    inputs = problem.inputs.split(len(problem.inputs) // batches)[:batches]
    method = build(start)
    assert isinstance(method, Round)
    stats = Stats.from_inputs(problem.inputs, method.needs)
    codes = method.round(problem.weight, Format.parse(text), stats, generator())
    return block_of(
        {"linear": problem.weight}, {"linear": codes}, lambda given, n: (inputs[n] @ given["linear"].T)[None], batches
    )


@pytest.mark.parametrize("descent", ["adam", "sign"])
@pytest.mark.parametrize("text", ["int4:g12:asym:fp32", "int2:g12:asym:fp32", "int3:g24:sym:fp32"])
def test_steps_of_the_oracle(text, descent):
    problem, format, method = problems.make(), Format.parse(text), SignRound(descent=descent, steps=10, rate=0.0937)
    task = task_of(problem, text)
    start = task.start["linear"]
    learned = _Learned.of(problem.weight, start, method)
    zeros = None if start.zeros is None else start.zeros.double().numpy()
    numbers = (value.double().numpy() for value in (problem.weight, start.codes, start.scales))
    oracle = Linear(*numbers, zeros, format.group, format.code_bits)
    assert np.allclose(learned.weight().numpy(), oracle.weight(), atol=1e-6)
    for step in range(6):
        batch, share = step % 4, 1 - step / 10
        _, slopes = task.gradients({"linear": learned.weight()}, batch)
        learned.move(slopes["linear"], share)
        x = problem.inputs.double().numpy()[batch * 75 : (batch + 1) * 75]
        oracle.step(x, x @ problem.weight.double().numpy().T, 0.0937 * share, descent)
        # a sign may differ where the gradient is about 0, and a code at a tie
        position = learned.position.flatten(1).numpy()
        assert np.isclose(position, oracle.position, atol=1e-4).mean() > 0.98
        assert np.isclose(learned.factor[..., 0].numpy(), oracle.factor, atol=1e-4).mean() > 0.98
    assert (learned.codes().codes.numpy() == oracle.codes()).mean() > 0.98


@pytest.mark.parametrize("text", ["int4:g16", "int3:g32:asym", "int2:g16:asym", "int8:channel", "int4:g32:asym:fp16"])
def test_what_is_trained_is_what_is_stored(text):
    weight = problems.make().weight
    learned = _Learned.of(weight, quantize(weight, Format.parse(text)), SignRound(rate=0.5))
    draw = generator()
    for _ in range(4):
        learned.move(torch.randn(weight.shape, generator=draw), 1.0)
    assert torch.equal(learned.weight(), learned.codes().dequantize())


@pytest.mark.parametrize("text", ["int4:g16", "int3:g32:asym", "int8:channel", "int4:tensor"])
def test_it_starts_from_the_codes_that_it_was_given(text):
    weight = problems.make().weight
    start = quantize(weight, Format.parse(text), search="mse")
    assert torch.equal(_Learned.of(weight, start, SignRound()).codes().dequantize(), start.dequantize())


@pytest.mark.parametrize("descent", ["adam", "sign"])
@pytest.mark.parametrize("text", ["int3:g24:sym", "int2:g24:asym"])
def test_it_beats_plain_rounding_on_other_inputs_too(text, descent):
    weight, draw = problems.make(rows=24).weight, generator()
    few = torch.randn(3200, 12, generator=draw) @ torch.randn(
        12, 72, generator=draw
    )  # what a model reads lies near few
    inputs = few + 0.3 * torch.randn(3200, 72, generator=draw)
    seen = problems.Problem(weight, inputs[:2400])
    notes: dict = {}
    task = task_of(seen, text, batches=16, start="rtn")
    rounded = SignRound(start="rtn", descent=descent).tune(task, generator(), notes)["linear"].dequantize()
    fresh = inputs[2400:]
    before = task.start["linear"].dequantize()
    errors = [problems.output_error(weight, w, fresh) for w in (rounded, before)]
    assert notes["loss"] < notes["loss_before"]
    assert errors[0] < 0.6 * errors[1]


def test_the_same_seed_gives_the_same_codes_and_nothing_given_is_changed():
    problem = problems.make()
    before = problem.weight.clone()
    one, other = (SignRound(steps=12).tune(task_of(problem, "int3:g24"), generator(), {})["linear"] for _ in range(2))
    assert torch.equal(one.codes, other.codes) and torch.equal(one.scales, other.scales)
    assert torch.equal(problem.weight, before) and not one.dequantize().requires_grad


def test_it_is_never_worse_than_its_start():
    """Steps so large that they only do harm: the codes that it was given come back."""
    problem, notes = problems.make(), {}
    task = task_of(problem, "int8:g24:asym", batches=2)
    rounded = SignRound(steps=1, rate=0.5).tune(task, generator(), notes)["linear"]
    assert notes["loss"] <= notes["loss_before"]
    assert torch.equal(rounded.codes, task.start["linear"].codes)


def test_scales_stay_as_they_are_where_they_are_not_learned():
    problem = problems.make()
    task = task_of(problem, "int3:g24")
    rounded = SignRound(steps=20, clip=False).tune(task, generator(), {})["linear"]
    assert torch.equal(rounded.scales, task.start["linear"].scales)


def test_the_batches_that_judge_are_not_trained_on():
    problem = problems.make()
    task = task_of(problem, "int3:g24")
    judged, trained = set(), set()
    watched = BlockTask(
        task.weights,
        task.start,
        task.batches,
        lambda w, n: (trained.add(n), task.gradients(w, n))[1],
        lambda w, n: (judged.add(n), task.loss(w, n))[1],
    )
    SignRound(steps=9).tune(watched, generator(), {})
    assert len(judged) == 1 and len(trained) == 3 and judged.isdisjoint(trained)


def test_grids_without_integers_are_refused():
    with pytest.raises(RecipeError, match=r"rounds to integers, and nf4:g24.* has none; choose gptq or rtn"):
        SignRound().tune(task_of(problems.make(), "nf4:g24"), generator(), {})


@pytest.mark.parametrize("text, first", [("int2:g12:sym", 0.05), ("int3:g12:asym", 0.025), ("int4:g12:sym", 0.0125)])
def test_finer_codes_take_shorter_steps(text, first):
    weight = problems.make().weight
    learned = _Learned.of(weight, quantize(weight, Format.parse(text)), SignRound(steps=10, descent="sign"))
    before = learned.position.clone()
    learned.move(torch.ones_like(weight), 1.0)
    moved = (before - learned.position).abs()
    inside = before.abs() < 1  # none of these can be at the end of the codes
    assert torch.allclose(moved[inside], torch.tensor(first), atol=1e-6)
