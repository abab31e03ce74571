"""Samples to rectangular batches: equal lengths together, padded at the right where they differ."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from subeight.errors import TextError
from subeight.text.evaluation import Sample


@dataclass(frozen=True, eq=False)
class Batch:
    """Some samples in one rectangle; row r is sample `index[r]`, its first `lengths[r]` columns are real."""

    ids: torch.Tensor  # int64 [rows, width]
    scored: torch.Tensor  # bool [rows, width], False on padding
    lengths: torch.Tensor  # int64 [rows]
    index: tuple[int, ...]


def batches(samples: Sequence[Sample], max_tokens: int, pad: int = 0, least: float = 0.5) -> list[Batch]:
    """All samples, longest first, at most `max_tokens` cells a batch; a longer sample is a batch alone.

    No sample is shorter than `least` of the longest in its batch: below one half, padding costs more than a batch.
    """
    if max_tokens < 1:
        raise TextError(f"batches of {max_tokens} tokens hold nothing: give at least 1")
    order = sorted(range(len(samples)), key=lambda index: (-len(samples[index].ids), index))
    packs: list[list[int]] = []
    for index in order:
        if packs and _fits(samples, packs[-1], index, max_tokens, least):
            packs[-1].append(index)
        else:
            packs.append([index])
    return [_batch(samples, pack, pad) for pack in packs]


def _fits(samples: Sequence[Sample], pack: list[int], index: int, max_tokens: int, least: float) -> bool:
    width = len(samples[pack[0]].ids)
    return (len(pack) + 1) * width <= max_tokens and len(samples[index].ids) >= least * width


def _batch(samples: Sequence[Sample], pack: list[int], pad: int) -> Batch:
    lengths = torch.tensor([len(samples[index].ids) for index in pack], dtype=torch.int64)
    width = int(lengths.max())
    ids = torch.full((len(pack), width), pad, dtype=torch.int64)
    scored = torch.zeros((len(pack), width), dtype=torch.bool)
    for row, index in enumerate(pack):
        sample = samples[index]
        ids[row, : len(sample.ids)] = torch.tensor(sample.ids, dtype=torch.int64)
        scored[row, : len(sample.ids)] = torch.tensor(sample.scored, dtype=torch.bool)
    return Batch(ids, scored, lengths, tuple(pack))
