"""The optimizer against its definition in float64, one number at a time."""

import math

import pytest
import torch
from torch import nn

from subeight.formats import Format, find_scales, quantize
from subeight.train.fake import TrainedWeight
from subeight.train.learning import BETAS, QUIET, QuietAdam
from subeight.train.student import Student


def slow_steps(start: list[float], slopes: list[list[float]], rate: float) -> list[float]:
    """Adam on gradients over their root mean square."""
    values, means, squares = list(start), [0.0] * len(start), [0.0] * len(start)
    first, second = BETAS
    for number, slope in enumerate(slopes, 1):
        size = math.sqrt(sum(s * s for s in slope) / len(slope))
        for at, s in enumerate(slope):
            s = s / size if size else 0.0
            means[at] = first * means[at] + (1 - first) * s
            squares[at] = second * squares[at] + (1 - second) * s * s
            spread = math.sqrt(squares[at] / (1 - second**number)) + QUIET
            values[at] -= rate * means[at] / (1 - first**number) / spread
    return values


@pytest.mark.parametrize("codes", [True, False], ids=["codes too", "scales and norms"])
def test_steps_are_those_of_the_definition(codes: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(4, 64, generator=generator)
    format = Format.parse("int2:g32:sym")
    weight = TrainedWeight(quantize(matrix, format, find_scales(matrix, format)), torch.float32, matrix)
    norm = nn.Parameter(3 * torch.randn(16, generator=generator))
    student = Student(nn.Module(), {"linear": weight}, {"norm": nn.ParameterDict({"original": norm})})
    if not codes:
        student.keep_codes()
    learned = {"factor": weight.factor, "norm": norm} | ({"position": weight.position} if codes else {})
    rate = 0.01
    rates = {"position": rate, "factor": rate / 3, "norm": rate / 3 * float(norm.detach().square().mean().sqrt())}
    before = {name: value.detach().clone() for name, value in learned.items()}
    slopes = {n: [torch.randn(v.shape, generator=generator) for _ in range(3)] for n, v in learned.items()}
    slopes["norm"][1].zero_()  # no token reached it
    optimizer = QuietAdam(student, rate)
    for number in range(3):
        for name, value in learned.items():
            value.grad = slopes[name][number].clone()
        optimizer.step()
    for name, value in learned.items():
        rows = [slope.double().flatten().tolist() for slope in slopes[name]]
        expected = slow_steps(before[name].double().flatten().tolist(), rows, rates[name])
        found = value.detach().double().flatten()
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-6)
