"""What a finished map says: the numbers of its record, from the ledger of what was measured."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats as scipy_stats

from subeight.evals.loss import Loss
from subeight.formats import Format
from subeight.map.course import Cells, Course
from subeight.map.estimate import Estimates, Floats
from subeight.map.ledger import DAMAGE, NOISE, RESCUE, Ledger
from subeight.map.work import merged, other_dtype


def map_numbers(ledger: Ledger, course: Course, formats: Sequence[Format]) -> dict[str, Any]:
    """Places, cells, wholes, controls and cost; the verb adds what it was asked."""
    samples = merged(ledger.job.rounds).samples
    found = {view: [course.estimates(f, view) for f in range(len(formats))] for view in (DAMAGE, RESCUE)}
    return {
        "places": [place.to_dict(formats) for place in ledger.job.places],
        "cells": [*_cells(ledger, found[DAMAGE], DAMAGE, formats), *_cells(ledger, found[RESCUE], RESCUE, formats)],
        "whole": {str(format): _lost(ledger, ledger.whole[number]) for number, format in enumerate(formats)},
        "mixtures": [_mixture(ledger, cells, formats) for cells in sorted(ledger.mixtures)],
        "samples": [
            {"document": sample.document, "category": sample.category, "tokens": float(count)}
            for sample, count in zip(samples, ledger.counts, strict=True)
        ],
        "difficulty": {
            str(format): [None if np.isnan(q) else float(q) for q in estimates.difficulty]
            for format, estimates in zip(formats, found[DAMAGE], strict=True)
        },
        "controls": _controls(ledger, formats),
        "priors": {
            str(format): {
                "prior": _rank(ledger.prior[:, number], found[DAMAGE][number]),
                "output_error": _rank(ledger.output_error[:, number], found[DAMAGE][number]),
            }
            for number, format in enumerate(formats)
        },
        "cost": {
            "token_blocks": ledger.token_blocks,
            "naive_token_blocks": course.naive,
            "share": ledger.token_blocks / course.naive,
            "rounds": course.rounds,
        },
    }


def _cells(ledger: Ledger, found: Sequence[Estimates], view: str, formats: Sequence[Format]) -> list[dict[str, Any]]:
    categories = np.asarray([sample.category for sample in merged(ledger.job.rounds).samples])
    rows = []
    for number, (format, estimates) in enumerate(zip(formats, found, strict=True)):
        low, high = estimates.interval()
        for at, place in enumerate(ledger.job.places):
            totals = ledger.totals[view][at, number]
            seen = np.isfinite(totals)
            if not seen.any():
                continue
            rows.append(
                {
                    "place": place.name,
                    "format": str(format),
                    "view": view,
                    "kl": float(estimates.mean[at]),
                    "kl_ci": [float(low[at]), float(high[at])],
                    "tokens": int(ledger.counts[seen].sum()),
                    "samples": int(seen.sum()),
                    "prior": _number(ledger.prior[at, number]) if view == DAMAGE else None,
                    "output_error": _number(ledger.output_error[at, number]) if view == DAMAGE else None,
                    "categories": {
                        str(name): float(totals[mine].sum() / ledger.counts[mine].sum())
                        for name in np.unique(categories[seen])
                        if (mine := seen & (categories == name)).any() and ledger.counts[mine].sum() > 0
                    },
                }
            )
    return rows


def _mixture(ledger: Ledger, cells: Cells, formats: Sequence[Format]) -> dict[str, Any]:
    chosen = {ledger.job.places[place].name: str(formats[format]) for place, format in cells}
    mixed = {place.name: chosen.get(place.name) for place in ledger.job.places}
    return {"formats": mixed, **_lost(ledger, ledger.mixtures[tuple(cells)])}


def _lost(ledger: Ledger, totals: Floats) -> dict[str, Any]:
    loss = Loss.of(totals, ledger.counts, [sample.category for sample in merged(ledger.job.rounds).samples])
    return {"kl": loss.value, "kl_ci": loss.interval().ci, "samples": (totals / ledger.counts).tolist()}


def _controls(ledger: Ledger, formats: Sequence[Format]) -> dict[str, Any]:
    last = len(formats) - 1
    at = ledger.samples_of(0)
    tokens = ledger.counts[at].sum()
    noise = [
        {
            "place": place.name,
            "format": str(formats[last]),
            "kl": float(ledger.totals[DAMAGE][number, last, at].sum() / tokens),
            "noise_kl": float(row.sum() / tokens),
        }
        for number, place in enumerate(ledger.job.places)
        if np.isfinite(row := ledger.totals[NOISE][number, last, at]).all()
    ]
    other = str(other_dtype(ledger.job.computing.dtype)).removeprefix("torch.")
    floor = {"dtype": other, "kl": ledger.floor[0]} if ledger.floor else None
    return {"no_swap": max(ledger.controls, default=0.0), "noise": noise, "floor": floor}


def _rank(expected: Floats, measured: Estimates) -> float | None:
    """Spearman's correlation of what was expected with what was measured."""
    both = np.isfinite(expected) & np.isfinite(measured.mean)
    if both.sum() < 3:
        return None
    return _number(scipy_stats.spearmanr(expected[both], measured.mean[both]).statistic)


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
