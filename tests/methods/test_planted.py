"""Each oracle sees an error planted in its method: a group off by one, no damping, a matrix the wrong way round."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from subeight.formats import Scales, qtensor
from subeight.methods.apart import lowrank, outliers
from subeight.methods.move import awq, smooth
from subeight.methods.polish import distil
from subeight.methods.round import gptq, hqq, signround
from subeight.models.stats import Stats
from tests.contract.methods import check_polish
from tests.methods import (
    test_awq,
    test_gptq,
    test_hqq,
    test_lowrank,
    test_outliers,
    test_rtn,
    test_signround,
    test_smooth,
)

Plant = Callable[[pytest.MonkeyPatch], None]


def off_by_one(module: Any) -> Plant:
    """Groups that begin one column too late."""
    right = module.grouped
    return lambda patch: patch.setattr(module, "grouped", lambda matrix, format: right(matrix.roll(1, 1), format))


def wrapped(owner: Any, name: str, change: Callable[[Any], Any]) -> Plant:
    """A function whose result is changed."""
    right = getattr(owner, name)
    return lambda patch: patch.setattr(owner, name, lambda *given, **options: change(right(*given, **options)))


def instead(owner: Any, name: str, wrong: Any) -> Plant:
    return lambda patch: patch.setattr(owner, name, wrong)


def unlike(stats: Stats, **changed: Tensor) -> Stats:
    return Stats(**{**{name: getattr(stats, name) for name in ("count", "hessian", "absmax", "absmean")}, **changed})


def given_wrong(method: Any, name: str, change: Callable[[Stats], Stats]) -> Plant:
    """A method that is told other statistics."""
    right = getattr(method, name)

    def call(self: Any, *given: Any, **options: Any) -> Any:
        swapped = [change(value) if isinstance(value, Stats) else value for value in given]
        return right(self, *swapped, **options)

    return lambda patch: patch.setattr(method, name, call)


def rolled(stats: Stats) -> Stats:
    return unlike(
        stats,
        **{
            name: getattr(stats, name).roll(1, 0) if name != "hessian" else stats.hessian.roll((1, 1), (0, 1))
            for name in ("hessian", "absmax", "absmean")
            if getattr(stats, name) is not None
        },
    )


def uphill(patch: pytest.MonkeyPatch) -> None:
    right = signround._Learned._step
    patch.setattr(signround._Learned, "_step", lambda self, slopes, sizes: right(self, [-one for one in slopes], sizes))


def no_damping(patch: pytest.MonkeyPatch) -> None:
    right = gptq.Gptq._factor

    def factor(self: Any, hessian: Tensor, order: Tensor, notes: dict[str, Any]) -> Any:
        object.__setattr__(self, "damping", 1e-6)
        return right(self, hessian, order, notes)

    patch.setattr(gptq.Gptq, "_factor", factor)


GPTQ = lambda: test_gptq.test_codes_of_the_oracle("int3:g20:sym", "activation")  # noqa: E731
SIGNED = lambda: test_signround.test_steps_of_the_oracle("int3:g24:sym:fp32", "adam")  # noqa: E731
CASES: dict[str, tuple[Plant, Callable[[], None]]] = {
    "rtn, wrong group": (off_by_one(qtensor), lambda: test_rtn.test_codes_of_the_oracle("int4:g16")),
    "rtn, wrong block of the Hessian": (
        given_wrong(type(test_rtn.build("rtn")), "round", rolled),
        lambda: test_rtn.test_output_search_is_the_oracles_on_tokens(16),
    ),
    "gptq, wrong group": (
        wrapped(Scales, "expand", lambda pair: (pair[0].roll(1, 1), None if pair[1] is None else pair[1].roll(1, 1))),
        GPTQ,
    ),
    "gptq, no damping": (no_damping, GPTQ),
    "gptq, a factor the wrong way round": (
        wrapped(gptq, "_feedback_and_costs", lambda pair: (pair[0].T.contiguous(), pair[1])),
        GPTQ,
    ),
    "gptq, no feedback": (
        wrapped(gptq, "_feedback_and_costs", lambda pair: (torch.eye(len(pair[0])), pair[1])),
        GPTQ,
    ),
    "hqq, wrong group": (off_by_one(hqq), lambda: test_hqq.test_turns_of_the_oracle("int3:g20:asym:fp32")),
    "hqq, no shrinkage": (
        instead(hqq, "_shrunk", lambda error, _p, _strength: error),
        lambda: test_hqq.test_turns_of_the_oracle("int3:g20:asym:fp32"),
    ),
    "signround, wrong group": (off_by_one(signround), SIGNED),
    "signround, uphill": (uphill, SIGNED),
    "signround, quiet values move too": (lambda patch: patch.setattr(signround, "QUIET", 0.0), SIGNED),
    "awq, wrong channels": (
        given_wrong(awq.Awq, "diagonal", rolled),
        lambda: test_awq.test_scales_of_the_oracle(False, True),
    ),
    "smooth, wrong channels": (
        given_wrong(smooth.Smooth, "diagonal", rolled),
        lambda: test_smooth.test_scales_of_the_oracle(72, 0.8),
    ),
    "outliers, wrong group": (
        off_by_one(outliers),
        test_outliers.test_one_value_of_each_group_is_the_one_that_gains_most,
    ),
    "outliers, wrong channels": (
        given_wrong(outliers.Outliers, "select", rolled),
        test_outliers.test_one_value_of_each_group_is_the_one_that_gains_most,
    ),
    "lowrank, a metric the wrong way round": (
        wrapped(lowrank.LowRank, "_metric", lambda pair: (pair[0].T, pair[1].T)),
        lambda: test_lowrank.test_nothing_of_this_rank_does_better_for_the_outputs(3),
    ),
    "lowrank, wrong channels": (
        given_wrong(lowrank.LowRank, "fit", rolled),
        lambda: test_lowrank.test_nothing_of_this_rank_does_better_for_the_outputs(3),
    ),
    "distil, uphill": (
        wrapped(distil.Distil, "_rate", lambda rate: -rate),
        lambda: check_polish(distil.Distil()),
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_planted_error_is_seen(case: tuple[Plant, Callable[[], None]], monkeypatch: pytest.MonkeyPatch) -> None:
    plant, oracle = case
    oracle()  # without it all is well
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        oracle()
