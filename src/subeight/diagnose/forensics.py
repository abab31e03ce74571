"""What is wrong with one quantized weight, from its numbers and the baseline's: pure functions of tensors.

A weight is judged by how much farther it lies from the baseline's than plain rounding in its own format would put it
(its excess). Error feedback, scales and clipping raise that a little; another weight raises it a lot. What lies too
far is tried with the scales of its groups refitted, with an offset for each group, and with rows or columns in another
order, before it is called another weight.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from subeight.formats import Format, QTensor, quantize
from subeight.formats.scales import grouped, ungrouped

Damage = Literal["rounding", "scales", "zeros", "permuted", "stale"]

EXCESS = 2.2  # healthy weights were measured up to 1.83 (an expert of a toy Mixtral, by GPTQ)
REFITTED = 1.9  # what a weight may keep once its scales or zero points are refitted
_MOST_LEFT = 0.15  # of the excess: what refitted scales or zero points may leave where the excess is large
_TYPICAL = 1.03
_MENDED = 0.3  # of the error of the groups that are wrong: what refitting them may leave
_MANY = 0.15  # of the codes at an end of the grid: scales over the full range leave a tenth there, but at 2 bits
_CORRELATED = 0.7
_MOST_ROWS = 16384  # beyond that, an order of rows is not looked for


@dataclass(frozen=True)
class Verdict:
    """The kind of damage, the excess, and for `permuted` the order: row (or column) k is the baseline's order[k]."""

    kind: Damage
    excess: float
    order: Tensor | None = None
    by_columns: bool = False
    words: str = ""
    typical: float = 1.0  # the excess of the median group: what a few broken groups do not raise
    even: float = 1.0  # the excess that nine groups of ten have at least
    mended: Damage = "stale"  # what would explain the typical excess: scales or zeros refitted, or nothing


@torch.no_grad()
def fresh(weight: Tensor, format: Format) -> Tensor:
    """The baseline's weight [out, in] as plain rounding in this format gives it, float32."""
    return quantize(weight.float(), format).dequantize()


@torch.no_grad()
def examine_codes(weight: Tensor, stored: QTensor) -> Verdict:
    """The verdict on a quantized weight, against the baseline's [out, in] in its gauge, float32."""
    format = stored.format
    found = stored.dequantize().to(weight.device)
    error = weight - fresh(weight, format)
    verdict = _judged(weight, found, float(error.norm()) or 1e-30, stored)
    unit = _energy(error, format)
    typical, even = _excess(weight - found, unit, format)
    mended: Damage = "stale"
    if verdict.kind == "rounding" and typical > _TYPICAL:
        healed = {
            "scales": _excess(weight - refitted(weight, found, format), unit, format)[0],
            "zeros": _excess(weight - shifted(weight, found, format), unit, format)[0],
        }
        best: Damage = "scales" if healed["scales"] <= healed["zeros"] else "zeros"
        mended = best if healed[best] - 1 <= 0.5 * (typical - 1) else "stale"
    return replace(verdict, typical=typical, even=even, mended=mended)


@torch.no_grad()
def worst_groups(weight: Tensor, stored: QTensor) -> Damage | None:
    """What would mend the groups that lie too far, where a few are wrong and the others hide it: scales or zero points.

    None where no group lies too far, or neither takes most of the error away.
    """
    format = stored.format
    found = stored.dequantize().to(weight.device)
    energy = _energy(weight - found, format)
    wrong = energy > EXCESS**2 * _energy(weight - fresh(weight, format), format)
    if not bool(wrong.any()):
        return None
    left = {
        "scales": float(_energy(weight - refitted(weight, found, format), format)[wrong].sum()),
        "zeros": float(_energy(weight - shifted(weight, found, format), format)[wrong].sum()),
    }
    best: Damage = "scales" if left["scales"] <= left["zeros"] else "zeros"
    return best if left[best] <= _MENDED * float(energy[wrong].sum()) else None


def _energy(error: Tensor, format: Format) -> Tensor:
    return grouped(error, format).square().sum(-1).flatten().clamp_min(1e-30)


def _excess(error: Tensor, unit: Tensor, format: Format) -> tuple[float, float]:
    """The excess of the median group, and the one that a tenth of the groups stays below."""
    ratios = (_energy(error, format) / unit).sort().values
    return float(ratios[len(ratios) // 2].sqrt()), float(ratios[len(ratios) // 10].sqrt())


@torch.no_grad()
def examine_dense(weight: Tensor, found: Tensor, unit: float) -> Verdict:
    """The same for a weight whose codes are not known; `unit` is the norm of the error that is usual in its place."""
    return _judged(weight, found, max(unit, 1e-30), None)


def _judged(weight: Tensor, found: Tensor, unit: float, stored: QTensor | None) -> Verdict:
    excess = float((weight - found).norm()) / unit
    if excess <= EXCESS:
        return Verdict("rounding", excess)
    if stored is not None:
        format = stored.format
        if _clipped(weight, found, unit, stored):
            return Verdict("scales", excess)
        # one number a group cannot take away the most of an error that is not its own
        explained = max(REFITTED, _MOST_LEFT * excess)
        if _left(weight, refitted(weight, found, format), unit) <= explained:
            return Verdict("scales", excess)
        if _left(weight, shifted(weight, found, format), unit) <= explained:
            return Verdict("zeros", excess)
    for by_columns in (False, True):
        order = order_of(weight.T, found.T) if by_columns else order_of(weight, found)
        if order is not None:
            return Verdict("permuted", excess, order, by_columns)
    return Verdict("stale", excess, words=relation(weight, found))


def _left(weight: Tensor, found: Tensor, unit: float) -> float:
    return float((weight - found).norm()) / unit


def _clipped(weight: Tensor, found: Tensor, unit: float, stored: QTensor) -> bool:
    """Whether too narrow scales explain it: codes at the ends of the grid where the weight lies beyond them."""
    if not stored.format.grid.startswith("int"):
        return False
    first, last = stored.format.levels
    codes = stored.codes.to(weight.device)
    beyond = ((codes == last) & (weight >= found)) | ((codes == first) & (weight <= found))
    inside = (weight - found)[~beyond].square().mean().sqrt()
    many = float(beyond.float().mean()) > _MANY
    return many and float(inside) * weight.numel() ** 0.5 <= REFITTED * unit


def refitted(weight: Tensor, found: Tensor, format: Format) -> Tensor:
    """`found` with the scale of each group fitted to the baseline's weight by least squares."""
    a, c = grouped(weight, format), grouped(found, format)  # [rows, groups, columns]
    factor = (a * c).sum(-1, keepdim=True) / c.square().sum(-1, keepdim=True).clamp_min(1e-30)
    return ungrouped(c * factor, weight.shape[1])


def shifted(weight: Tensor, found: Tensor, format: Format) -> Tensor:
    """`found` with an offset added to each group, fitted by least squares."""
    a, c = grouped(weight, format), grouped(found, format)
    return ungrouped(c + (a - c).mean(-1, keepdim=True), weight.shape[1])


def order_of(weight: Tensor, found: Tensor) -> Tensor | None:
    """The order of the baseline's rows that `found` has: row k is the baseline's row order[k].

    None where it is the same order, or no order explains the rows.
    """
    if len(weight) > _MOST_ROWS:
        return None
    a, c = (torch.nn.functional.normalize(value.float(), dim=1) for value in (weight, found))
    alike = c @ a.T  # [found, baseline]
    order = alike.argmax(1)
    own = torch.arange(len(order), device=order.device)
    dead = (a.abs().sum(1) == 0) | (c.abs().sum(1) == 0)
    order = torch.where(dead, own, order)
    if bool((order == own).all()) or len(order.unique()) < len(order):
        return None
    matched = alike.gather(1, order[:, None])[~dead]
    return order.cpu() if float(matched.mean()) >= _CORRELATED else None


def heads_of(order: Tensor, head_dim: int | None) -> list[int] | None:
    """An order of rows as one of whole heads; None where it is none."""
    if not head_dim or len(order) % head_dim:
        return None
    heads = order.view(-1, head_dim)
    first = heads[:, :1]
    whole = bool((heads == first + torch.arange(head_dim)).all()) and bool((first % head_dim == 0).all())
    return (first[:, 0] // head_dim).tolist() if whole else None


def low_rank_share(weight: Tensor, found: Tensor) -> float:
    """The share of the difference's energy in its largest singular values, a sixteenth of all.

    About a quarter at most for noise; nearly all for a low-rank update that was merged.
    """
    energy = torch.linalg.svdvals((weight - found).float()).square()
    return float(energy[: max(1, len(energy) // 16)].sum() / energy.sum().clamp_min(1e-30))


def relation(weight: Tensor, found: Tensor) -> str:
    """How another weight is related to the baseline's."""
    correlation = _correlation(weight, found)
    if weight.shape[0] == weight.shape[1] and _correlation(weight.T, found) > max(_CORRELATED, correlation):
        return "it is the baseline's transposed"
    if correlation < -_CORRELATED:
        return f"it has the opposite sign (correlation {correlation:.2f})"
    return f"its correlation with the baseline's is {correlation:.3f}"


def _correlation(a: Tensor, c: Tensor) -> float:
    return float((a * c).sum() / (a.norm() * c.norm()).clamp_min(1e-30))
