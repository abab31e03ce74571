"""GPTQ: rounds column by column, and lets the columns still to come make up for what each lost.

Frantar et al. 2022, https://arxiv.org/abs/2210.17323. The inputs' second moments (the Hessian of the output's
error) say how well one column can stand in for another. All linears that read one tensor are rounded in one
pass.

The paper walks along the rows of the Cholesky factor of the *inverse* Hessian. With H = M D M^T, M unit upper
triangular, the very same codes come from rounding column k of W + E (M - 1), where E holds the errors that
the columns before k were left with (Chee et al. 2023, https://arxiv.org/abs/2307.13304, theorem 6): one
Cholesky of H itself, no inverse, and errors are read instead of every later column being written. D also says
what rounding each column will cost in the end, and so how far the range of a group is worth clipping
(`search: output`).

`target: baseline` is the asymmetric calibration of GPTAQ (Li et al. 2025, https://arxiv.org/abs/2504.02692) in closed
form: the error of the inputs counts too, which moves the weight that is rounded and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from subeight.errors import InputError, SubeightError
from subeight.formats import Format, QTensor, Scales, find_scales, quantize_columns
from subeight.methods.base import Round, option
from subeight.methods.scales import SEARCHES
from subeight.models.stats import Stats

BLOCK = 64  # columns whose errors are read one by one; earlier ones come in through one matrix product


@dataclass(frozen=True)
class Gptq(Round):
    """Round column by column and feed the error forward."""

    name: ClassVar[str] = "gptq"
    scope: ClassVar[str] = "group"
    damping: float = option(0.01, "share of the Hessian's mean diagonal that is added to its diagonal", low=0, high=10)
    attempts: int = option(
        4, "how often the damping is raised tenfold when the Hessian cannot be factored", low=0, high=10
    )
    order: str = option(
        "activation",
        "columns with the largest inputs first (scales stay with their columns), or as they stand",
        choices=("activation", "columns"),
    )
    search: str = option(
        "output",
        "how the scales are found before any column is rounded; `output` clips where the loss after feedback is least",
        choices=SEARCHES,
    )

    target: str = option(
        "weight",
        "what the outputs are compared with: the weight on the inputs that it gets, or (`baseline`) on those that the "
        "baseline would get, so that errors of earlier layers are made up for (GPTAQ)",
        choices=("weight", "baseline"),
    )

    @property
    def needs(self) -> frozenset[str]:
        """The Hessian, always; against the baseline's outputs, how far its inputs are."""
        return frozenset({"hessian"}) | ({"drift"} if self.target == "baseline" else frozenset())

    @override
    def round(
        self,
        weight: Float[Tensor, "out in"],
        format: Format,
        stats: Stats | None,
        generator: torch.Generator,
        notes: dict[str, Any] | None = None,
    ) -> QTensor:
        """Codes that lose least of the output; notes: `damping`, `precision`, `dead` columns."""
        notes = {} if notes is None else notes
        if stats is None or stats.hessian is None:
            raise InputError("gptq was called without a Hessian; give calibration text or choose rtn.")
        if stats.hessian.shape != (weight.shape[1], weight.shape[1]):
            raise InputError(
                f"gptq was given a Hessian of {tuple(stats.hessian.shape)} for a weight with "
                f"{weight.shape[1]} columns; tap the input that this linear reads."
            )
        diagonal = stats.hessian.diagonal()
        if self.order == "activation":
            order = torch.argsort(diagonal, descending=True, stable=True)
        else:
            order = torch.arange(weight.shape[1], device=weight.device)
        notes["dead"] = int((diagonal == 0).sum())
        feedback, costs = self._factor(stats.hessian, order, notes)
        if self.target == "baseline":
            notes["target"] = "weight" if stats.drift is None else "baseline"
            weight = _retargeted(weight, stats, float(notes["damping"]))
        if self.search == "output":
            scales = find_scales(weight, format, search="mse", importance=costs, signed=True)
        else:
            scales = find_scales(weight, format, search=self.search)
        with _one_thread():
            codes = solve(weight, format, scales, feedback, order)
        shape = (weight.shape[0], weight.shape[1])
        return QTensor(format, shape, codes, scales.scales, scales.zeros, scales.global_scale)

    def _factor(
        self, hessian: Float[Tensor, "in in"], order: Int[Tensor, " in"], notes: dict[str, Any]
    ) -> tuple[Float[Tensor, "in in"], Float[Tensor, " in"]]:
        """M^T for the columns in `order`, whose row k says how the errors before k move column k; and D.

        D: what a unit of error in a column (in its own place) costs once all later columns have made up for it.
        """
        backwards = order.flip(0)
        turned = hessian.index_select(0, backwards).index_select(1, backwards)
        mean = float(hessian.diagonal().mean(dtype=torch.float64))
        if not math.isfinite(mean):
            raise InputError(
                "gptq was given a Hessian with NaN or Inf; look for overflow in the activations before it."
            )
        mean, damping = mean or 1.0, self.damping
        for attempt in range(self.attempts + 1):
            for dtype in (turned.dtype, torch.float64):
                damped = turned.to(dtype, copy=True)
                diagonal = damped.diagonal().add_(damping * mean)
                # a column that was never fed has a zero row: any positive diagonal leaves it to plain rounding
                diagonal.masked_fill_(diagonal == 0, mean)
                factor, failed = torch.linalg.cholesky_ex(damped, upper=True)
                if not failed:
                    notes |= {"damping": damping, "precision": str(dtype).removeprefix("torch.")}
                    return _feedback_and_costs(factor.flip(0, 1), order, hessian.dtype)
            if attempt < self.attempts:
                damping = max(damping * 10, 1e-4)
        raise SubeightError(
            f"gptq could not factor a Hessian even with damping {damping:g} of its mean diagonal; "
            "give more calibration text, or raise damping or attempts."
        )


def _retargeted(weight: Float[Tensor, "out in"], stats: Stats, damping: float) -> Float[Tensor, "out in"]:
    """The weight that on these inputs X comes nearest to the given one on the baseline's X'.

    |Q X - W X'|^2 = |(Q - W') X|^2 + what no Q changes, with W' = W + W (X' - X)^T X H^-1: least squares, once.
    """
    if stats.drift is None or stats.hessian is None:
        return weight
    damped = stats.hessian.double()
    mean = float(damped.diagonal().mean()) or 1.0
    damped.diagonal().add_(damping * mean).masked_fill_(damped.diagonal() == 0, mean)
    across = torch.linalg.solve(damped, stats.drift.double().T).T
    return (weight.double() + weight.double() @ across).float()


def _feedback_and_costs(
    factor: Float[Tensor, "in in"], order: Int[Tensor, " in"], dtype: torch.dtype
) -> tuple[Float[Tensor, "in in"], Float[Tensor, " in"]]:
    diagonal = factor.diagonal().clone()
    costs = torch.empty_like(diagonal)
    costs[order] = diagonal.square()
    return factor.div_(diagonal[:, None]).to(dtype), costs.to(dtype)


@contextmanager
def _one_thread() -> Iterator[None]:
    """The loop's operations are too small to share: a second thread gains a tenth on an idle core, and on a busy one
    every operation waits for it (measured: 4 to 10 times slower)."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
def solve(
    weight: Float[Tensor, "out in"],
    format: Format,
    scales: Scales,
    feedback: Float[Tensor, "in in"],
    order: Int[Tensor, " in"],
) -> Tensor:
    """The codes of `weight` [out, in], its columns rounded in `order` with errors fed along `feedback`."""
    # columns lie as rows from here on: one column is one contiguous run of memory
    columns = weight.T.index_select(0, order).to(feedback.dtype)
    scale, zero = scales.expand(format, weight.shape[1])
    scale = scale.T.index_select(0, order).to(feedback.dtype)
    zero = None if zero is None else zero.T.index_select(0, order).to(feedback.dtype)
    errors, codes = torch.empty_like(columns), []
    for start in range(0, len(order), BLOCK):
        part = slice(start, min(start + BLOCK, len(order)))
        block = _Block(
            columns=columns[part],
            wanted=torch.addmm(columns[part], feedback[part, :start], errors[:start]),
            errors=errors[part],
            feedback=feedback[part, part],
            scale=scale[part],
            zero=None if zero is None else zero[part],
        )
        if format.grid.startswith("int"):
            codes.append(_round_integers(block, format))
        else:
            codes.append(_round_any(block, format))
    stacked = torch.cat([part.view(torch.uint8) for part in codes])  # float8 cannot be indexed
    back = stacked.index_select(0, torch.argsort(order))
    return back.T.contiguous().view(format.values.code_dtype)


@dataclass(frozen=True)
class _Block:
    """Some columns, each a row here: as they are, as the errors so far want them, what rounding leaves."""

    columns: Float[Tensor, "block out"]
    wanted: Float[Tensor, "block out"]
    errors: Float[Tensor, "block out"]
    feedback: Float[Tensor, "block block"]
    scale: Float[Tensor, "block out"]
    zero: Float[Tensor, "block out"] | None


def _round_integers(block: _Block, format: Format) -> Tensor:
    """Few operations a column, all in place: this loop is where GPTQ spends its time."""
    low, high = format.levels
    codes = torch.empty_like(block.columns)
    known, rows = block.errors.T, block.feedback.unbind(0)
    zeros = [None] * len(codes) if block.zero is None else block.zero.unbind(0)
    each = zip(block.columns, block.wanted, block.errors, block.scale, zeros, codes, strict=True)
    for k, (column, wanted, error, scale, zero, code) in enumerate(each):
        if k:
            wanted.addmv_(known[:, :k], rows[k][:k])
        if zero is None:
            torch.div(wanted, scale, out=code).clamp_(low, high).round_()
            torch.addcmul(column, code, scale, value=-1, out=error)
        else:
            torch.div(wanted, scale, out=code).add_(zero).clamp_(low, high).round_()
            torch.addcmul(column, torch.sub(code, zero, out=wanted), scale, value=-1, out=error)
    return codes.to(torch.int8)


def _round_any(block: _Block, format: Format) -> Tensor:
    """The same for every other grid, through the formats' own rounding."""
    known, codes = block.errors.T, []
    for k, wanted in enumerate(block.wanted):
        if k:
            wanted.addmv_(known[:, :k], block.feedback[k, :k])
        code, value = quantize_columns(wanted[:, None], format, block.scale[k])
        torch.sub(block.columns[k], value[:, 0], out=block.errors[k])
        codes.append(code[:, 0])
    return torch.stack([code.view(torch.uint8) for code in codes]).view(format.values.code_dtype)
