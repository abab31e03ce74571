"""Which cells deserve more text: those whose interval could change the order of the places or an allocation.

Two stakes are weighed. Order: how many neighbours of the same format a cell may be standing on the wrong side of.
Allocation: at any price of a byte, how much more would be lost than needed if a cell's true loss lay at the unlucky end
of its interval. Where neither is left, the text that is left is not read.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats as scipy_stats

from subeight.map.estimate import Floats

_PRICES = 48
_MISORDERED = 0.01  # share of pairs of a format that may be in the wrong order: its ranks are settled
_REGRET = 0.01  # share of the loss of an allocation that one cell may be worth
_SIGMAS = 2.0


@dataclass(frozen=True)
class Known:
    """Of every cell [places, formats]: log of the loss, its standard error, and the bytes that it stores.

    `kept` is what each place stores unquantized, where it loses nothing.
    """

    log: Floats
    error: Floats
    bytes: Floats
    kept: Floats


def combined(measured: Floats, relative: Floats, prior: Floats, bytes: Floats, kept: Floats) -> Known:
    """What is known of the cells by measuring, and by the prior where that is worth something.

    The prior is brought onto the measured scale by a line through the logs, format by format, and counts with the
    spread that is left around that line.
    """
    log = np.log(np.maximum(measured, 1e-12))
    error = np.maximum(relative, 1e-6)
    for format in range(measured.shape[1]):
        usable = (prior[:, format] > 0) & (measured[:, format] > 1e-12)
        if usable.sum() < 8:
            continue
        x, y = np.log(prior[usable, format]), log[usable, format]
        slope, middle = np.polyfit(x, y, 1)
        spread = float(np.std(y - slope * x - middle))
        expected = slope * x + middle
        own = 1 / error[usable, format] ** 2
        others = 1 / max(spread, 1e-3) ** 2
        log[usable, format] = (y * own + expected * others) / (own + others)
        error[usable, format] = 1 / np.sqrt(own + others)
    return Known(log, error, bytes, kept)


def order_stakes(known: Known) -> Floats:
    """Per cell the share of its format's other cells that may be on the wrong side of it."""
    gap = np.abs(known.log[:, None, :] - known.log[None, :, :])
    width = np.sqrt(known.error[:, None, :] ** 2 + known.error[None, :, :] ** 2)
    chance = scipy_stats.norm.sf(gap / width)
    for format in range(chance.shape[2]):
        np.fill_diagonal(chance[:, :, format], 0.0)
    return np.asarray(chance.sum(1) / max(1, known.log.shape[0] - 1))


def allocation_stakes(known: Known) -> Floats:
    """Per cell the most that a wrong belief about it could cost, as a share of the loss of an allocation."""
    nothing = np.zeros((len(known.log), 1))
    loss, low, high = (np.hstack([nothing, np.exp(known.log + side * _SIGMAS * known.error)]) for side in (0, -1, 1))
    bytes = np.hstack([known.kept[:, None], known.bytes])
    slopes = _slopes(loss, bytes)
    stakes = np.zeros_like(loss)
    if not len(slopes):
        return stakes[:, 1:]
    for price in np.geomspace(slopes.min(), slopes.max(), _PRICES):
        paid = price * bytes
        chosen = (loss + paid).argmin(1)
        rows = np.arange(len(loss))
        # what is lost, and what the bytes beyond the least are worth at this price
        total = (loss + paid)[rows, chosen].sum() - paid.min(1).sum()
        regret = (high + paid)[rows, chosen][:, None] - (low + paid)
        regret[rows, chosen] = 0.0
        share = np.maximum(regret, 0.0) / max(total, 1e-12)
        stakes = np.maximum(stakes, share)
        stakes[rows, chosen] = np.maximum(stakes[rows, chosen], share.max(1))
    return stakes[:, 1:]


def _slopes(loss: Floats, bytes: Floats) -> Floats:
    """Prices of a byte at which some place would change its format."""
    found: list[float] = []
    for place in range(len(loss)):
        order = np.argsort(bytes[place])
        saved = -np.diff(loss[place][order])
        more = np.diff(bytes[place][order])
        found += [float(a / b) for a, b in zip(saved, more, strict=True) if a > 0 and b > 0]
    return np.asarray(found)


def chosen_cells(
    known: Known, open_cells: npt.NDArray[np.bool_], cost: Sequence[float], most: float
) -> list[tuple[int, int]]:
    """The cells that get the next part of the text, at most `most` in cost; `cost` is per place.

    Half of it goes to the order, half to the allocation; none where both are settled.
    """
    order, allocation = order_stakes(known), allocation_stakes(known)
    settled = order.mean(0) < _MISORDERED
    order = np.where(settled[None, :], 0.0, order)
    allocation = np.where(allocation < _REGRET, 0.0, allocation)
    chosen: dict[tuple[int, int], None] = {}
    spent = 0.0
    for stakes, limit in ((allocation, most / 2), (order, most)):
        ranked = np.argsort(-stakes, axis=None, kind="stable")
        for at in ranked:
            place, format = divmod(int(at), stakes.shape[1])
            if stakes[place, format] <= 0 or spent >= limit:
                break
            if open_cells[place, format] and (place, format) not in chosen and spent + cost[place] <= most:
                chosen[place, format] = None
                spent += cost[place]
    return sorted(chosen)
