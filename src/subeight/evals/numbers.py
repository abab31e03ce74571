"""From outcomes per token to the numbers of a record: one dictionary with the field names that DESIGN fixes.

Every number is over tokens and every interval over documents; categories and positions get the same
treatment, and whatever makes an interval doubtful is written down as a warning beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from subeight.errors import InputError, SubeightError
from subeight.evals.stats import (
    FEW,
    Interval,
    mean_interval,
    paired_difference,
    perplexity_interval,
    quantile_interval,
)
from subeight.evals.tokens import TokenOutcomes
from subeight.text import Sample

POSITION_EDGES = (0, 1, 4, 16, 64, 256, 1024, 4096, 16384, 65536)
"""Where the buckets of positions begin; early tokens have little context and carry the massive activations.
"""


@dataclass(frozen=True)
class Places:
    """Where each scored token stands: its sample (window or prompt), document, category, and position in the sample."""

    sample: npt.NDArray[np.int64]
    document: npt.NDArray[np.str_]
    category: npt.NDArray[np.str_]
    position: npt.NDArray[np.int64]

    @classmethod
    def of(
        cls,
        sample: Sequence[int] | npt.NDArray[np.int64],
        document: Sequence[str] | Sequence[int] | None = None,
        category: Sequence[str] | None = None,
        position: Sequence[int] | npt.NDArray[np.int64] | None = None,
    ) -> Places:
        """From sequences with one entry per token.

        Where something is left out, each sample is its own document, the one category is `text`, and positions count
        the scored tokens of a sample.
        """
        samples = np.asarray(sample, dtype=np.int64)
        return cls(
            samples,
            np.asarray(samples if document is None else document).astype(np.str_),
            np.full(len(samples), "text") if category is None else np.asarray(category, dtype=np.str_),
            _counted(samples) if position is None else np.asarray(position, dtype=np.int64),
        )

    @classmethod
    def of_samples(cls, samples: Sequence[Sample]) -> Places:
        """Of the scored tokens of an evaluation set, sample by sample; positions are those of the predicted tokens."""
        places = [np.flatnonzero(sample.scored) for sample in samples]
        counts = [len(place) for place in places]
        return cls.of(
            np.repeat(np.arange(len(samples)), counts),
            [sample.document for sample, count in zip(samples, counts, strict=True) for _ in range(count)],
            [sample.category for sample, count in zip(samples, counts, strict=True) for _ in range(count)],
            np.concatenate([np.empty(0, dtype=np.int64), *places]),
        )

    def __len__(self) -> int:
        return len(self.sample)

    def only(self, mask: npt.NDArray[np.bool_]) -> Places:
        """The places of some of the tokens."""
        return Places(self.sample[mask], self.document[mask], self.category[mask], self.position[mask])


@dataclass
class _Tokens:
    """Outcomes as float64 arrays beside their places, with what resamples them."""

    nll_reference: npt.NDArray[np.float64]
    nll: npt.NDArray[np.float64]
    kl: npt.NDArray[np.float64]
    agree: npt.NDArray[np.float64]
    places: Places
    seed: int
    resamples: int
    clusters: npt.NDArray[Any] = field(init=False)
    windows: bool = field(init=False)  # clusters are windows of one document, for want of documents

    def __post_init__(self) -> None:
        documents = len(np.unique(self.places.document))
        self.windows = documents == 1 and len(np.unique(self.places.sample)) > 1
        self.clusters = self.places.sample if self.windows else self.places.document

    def only(self, mask: npt.NDArray[np.bool_]) -> _Tokens:
        return _Tokens(
            self.nll_reference[mask],
            self.nll[mask],
            self.kl[mask],
            self.agree[mask],
            self.places.only(mask),
            self.seed,
            self.resamples,
        )

    def mean(self, values: npt.NDArray[np.float64], most: float = math.inf) -> Interval:
        """Of what is never below 0, nor above `most`."""
        return mean_interval(values, self.clusters, seed=self.seed, resamples=self.resamples).within(0.0, most)


def numbers(
    outcomes: TokenOutcomes,
    places: Places,
    *,
    seed: int = 0,
    resamples: int = 2000,
    choices: Mapping[str, Any] | None = None,
    generation: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The `numbers` of an evaluate record: ppl, kl, top1 and the rest with `*_ci`, `categories`, `positions`,
    `warnings`.

    `choices` and `generation` are what `choice_numbers` and `generation_agreement` returned, passed through.
    All intervals come from one seed, so the same outcomes give the same record.
    """
    tokens = _tokens(outcomes, places, seed, resamples)
    whole = _measures(tokens)
    names = [str(name) for name in np.unique(places.category)]
    parts = {name: tokens.only(places.category == name) for name in names}
    whole["categories"] = {name: _measures(part) for name, part in parts.items()}
    whole["positions"] = _positions(tokens)
    whole["choices"] = dict(choices) if choices is not None else None
    whole["generation"] = dict(generation) if generation is not None else None
    whole["warnings"] = _warnings(tokens, parts)
    return whole


def sample_rows(outcomes: TokenOutcomes, places: Places) -> list[dict[str, Any]]:
    """One row per sample, for Parquet: mean nll of both, mean and largest kl, top1, token count, category,
    document.
    """
    tokens = _tokens(outcomes, places, 0, 1)
    samples, first, index = np.unique(places.sample, return_index=True, return_inverse=True)
    count = np.bincount(index)

    def mean(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.bincount(index, weights=values) / count

    largest = np.zeros(len(samples))
    np.maximum.at(largest, index, tokens.kl)
    columns = {
        "nll": mean(tokens.nll),
        "nll_baseline": mean(tokens.nll_reference),
        "kl": mean(tokens.kl),
        "kl_max": largest,
        "top1": mean(tokens.agree),
    }
    return [
        {
            "sample": int(sample),
            "document": str(places.document[first[i]]),
            "category": str(places.category[first[i]]),
            "tokens": int(count[i]),
            **{name: float(column[i]) for name, column in columns.items()},
        }
        for i, sample in enumerate(samples)
    ]


def _tokens(outcomes: TokenOutcomes, places: Places, seed: int, resamples: int) -> _Tokens:
    if len(outcomes) != len(places):
        raise InputError(
            f"{len(outcomes)} outcomes and {len(places)} places were given; give one of each per scored token"
        )
    if len(places) == 0:
        raise InputError("no tokens were scored; give evaluation text with at least two tokens")
    arrays = [
        part.detach().cpu().numpy().astype(np.float64)
        for part in (outcomes.nll_reference, outcomes.nll_candidate, outcomes.kl, outcomes.agree)
    ]
    _require_finite("baseline", arrays[0], places)
    _require_finite("candidate", arrays[1] + arrays[2], places)
    return _Tokens(arrays[0], arrays[1], arrays[2], arrays[3], places, seed, resamples)


def _require_finite(whose: str, values: npt.NDArray[np.float64], places: Places) -> None:
    broken = np.flatnonzero(~np.isfinite(values))
    if broken.size:
        where = f"sample {places.sample[broken[0]]}, position {places.position[broken[0]]}"
        raise SubeightError(
            f"the {whose}'s logits are NaN or infinite for {broken.size} of {len(values)} scored tokens, "
            f"first in {where}; the checkpoint is damaged or overflows in its compute type: try float32"
        )


def _measures(tokens: _Tokens) -> dict[str, Any]:
    """The same measures of any set of tokens: all of them, or one category."""
    options = {"seed": tokens.seed, "resamples": tokens.resamples}
    ppl = perplexity_interval(tokens.nll, tokens.clusters, **options)
    baseline = perplexity_interval(tokens.nll_reference, tokens.clusters, **options)
    ratio = paired_difference(tokens.nll, tokens.nll_reference, tokens.clusters, **options).exp()
    kl = tokens.mean(tokens.kl)
    p99 = quantile_interval(tokens.kl, tokens.clusters, 0.99, seed=tokens.seed)
    top1 = tokens.mean(tokens.agree, most=1.0)
    measures = {
        "ppl": ppl,
        "ppl_baseline": baseline,
        "ppl_ratio": ratio,
        "kl": kl,
        "kl_p99": p99,
        "top1": top1,
    }
    result: dict[str, Any] = {}
    for name, interval in measures.items():
        result[name] = interval.value
        result[f"{name}_ci"] = interval.ci
    result["kl_max"] = float(tokens.kl.max())
    result["tokens"] = len(tokens.places)
    result["samples"] = len(np.unique(tokens.places.sample))
    result["documents"] = len(np.unique(tokens.places.document))
    result["ci_method"] = kl.method
    return result


def _positions(tokens: _Tokens) -> list[dict[str, Any]]:
    """KL by position in the sample; `to` is exclusive."""
    position = tokens.places.position
    edges = [*POSITION_EDGES, int(max(POSITION_EDGES[-1], position.max())) + 1]
    rows = []
    for start, stop in pairwise(edges):
        mask = (position >= start) & (position < stop)
        if mask.any():
            part = tokens.only(mask)
            kl = part.mean(part.kl)
            rows.append(
                {
                    "from": start,
                    "to": stop,
                    "kl": kl.value,
                    "kl_ci": kl.ci,
                    "tokens": int(mask.sum()),
                }
            )
    return rows


def _warnings(tokens: _Tokens, parts: Mapping[str, _Tokens]) -> list[str]:
    """What a reader of the numbers must know before trusting their intervals."""
    found = []
    clusters = len(np.unique(tokens.clusters))
    what = "windows" if tokens.windows else "documents"
    if tokens.windows:
        found.append(
            f"All text is one document: intervals resample its {clusters} windows, which resemble each "
            "other, so they are too narrow."
        )
    if clusters == 1:
        found.append("There is one document in one window: no interval can be given; evaluate on more documents.")
    elif clusters < FEW:
        found.append(
            f"Only {clusters} {what}: intervals are t-intervals and rest on few draws; {FEW} or more are better."
        )
    if len(parts) > 1:
        few = [name for name, part in parts.items() if len(np.unique(part.clusters)) < FEW]
        if few:
            found.append(f"Fewer than {FEW} documents or windows in: {', '.join(few)}; their intervals are rough.")
    if len(tokens.places) < 1000:
        found.append(
            f"Only {len(tokens.places)} tokens: kl_p99 rests on {max(1, len(tokens.places) // 100)} of them; "
            "a thousand or more are better."
        )
    return found


def _counted(samples: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """0, 1, 2, ... within each sample, in the order given."""
    order = np.argsort(samples, kind="stable")
    ordered = samples[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    lengths = np.diff(np.r_[starts, len(ordered)])
    counted = np.empty(len(samples), dtype=np.int64)
    counted[order] = np.arange(len(samples)) - np.repeat(starts, lengths)
    return counted
