"""Outliers in the inputs of the linears: which channels carry them, and on how many tokens.

The yardstick is the *typical* value: the root mean square of the median channel. The root mean square of the whole
input would not do: a massive token raises it tenfold and hides the rest, and in an input of w channels none can stay
above sqrt(w) times it, so narrow models would never show anything. A value is *extreme* above 20 times the typical one
(and above the input's RMS) and *massive* above 200 times. A channel is *systematic* when it is extreme on 5 % of the
tokens or more (as in LLM.int8(), https://arxiv.org/abs/2208.07339), and carries *massive activations*
(https://arxiv.org/abs/2402.17762) when it is massive on fewer than 5 %.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from subeight.errors import ModelError
from subeight.models.block import Block
from subeight.models.structure import InputGroup

EXTREME = 20.0
MASSIVE = 200.0
LARGE_SHARE = 0.05
FEWEST = 64  # tokens under which nothing is called massive or systematic
LISTED = 64  # channels, positions and tokens named in the record, the largest first
_CHUNK = 2**20


@dataclass(frozen=True)
class _Values:
    """Single large values: which row they stand in, which channel, which cell of the ids (-1 unknown), how large."""

    row: Tensor
    channel: Tensor
    cell: Tensor
    size: Tensor

    def where(self, mask: Tensor) -> "_Values":
        return _Values(self.row[mask], self.channel[mask], self.cell[mask], self.size[mask])

    @classmethod
    def joined(cls, parts: list["_Values"]) -> "_Values":
        return cls(*(torch.cat([getattr(p, name) for p in parts]) for name in ("row", "channel", "cell", "size")))


class InputWatch:
    """Watches one group's input over at most `most` tokens, batch by batch.

    Large values are kept one by one. How large is known at the end only, but sums of squares only grow, so what they
    are so far, spread over all tokens to come, never asks too much; the few that turn out too small are dropped.
    """

    def __init__(self, group: InputGroup, most: int, block: Block) -> None:
        self.group = group
        self.count = 0
        self._most = most
        self._dtype = block.dtype
        self._index = block.index
        self._absmax = torch.zeros(group.width, device=block.device)
        self._square = torch.zeros(group.width, dtype=torch.float64, device=block.device)
        self._large: list[_Values] = []

    def add(self, rows: Float[Tensor, "n in"], cells: Tensor | None) -> None:
        """One batch's rows, and the cells of the ids that they are."""
        parts = rows.split(max(1, _CHUNK // rows.shape[1])) if len(rows) else ()
        start = 0
        for part in parts:
            size = part.float().abs()
            torch.maximum(self._absmax, size.amax(0), out=self._absmax)
            self._square += size.square().sum(0)
            own = None if cells is None else cells[start : start + len(part)]
            self._keep(size, own, _threshold(self._square, self._most, zeros=True))
            start += len(part)
            self.count += len(part)
        if not bool(torch.isfinite(self._square.sum())):
            raise ModelError(
                f"the input of {self.group.name} holds NaN or Inf when the model computes in {self._dtype}: "
                "try --dtype float32, and look at the weights before it."
            )

    def _keep(self, size: Tensor, cells: Tensor | None, least: float) -> None:
        columns = (size.amax(0) > least).nonzero()[:, 0]
        row, column = (size[:, columns] > least).nonzero(as_tuple=True)
        channel = columns[column]
        cell = torch.full_like(row, -1) if cells is None else cells[row]
        if len(row):
            found = (row + self.count, channel, cell, size[row, channel])
            self._large.append(_Values(*(value.cpu() for value in found)))

    def _extremes(self) -> _Values:
        none = torch.zeros(0, dtype=torch.long)
        values = _Values.joined([*self._large, _Values(none, none, none, torch.zeros(0))])
        return values.where(values.size > _threshold(self._square, self.count, zeros=False))

    def describe(self, ids: Tensor, spell: Callable[[int], str]) -> dict[str, Any]:
        """One row of the record's `inputs`; ids [sequences, length] are those that were watched."""
        count = max(self.count, 1)
        rms = float((self._square.mean() / count).sqrt())
        typical = _typical(self._square, count, zeros=False)
        absmax = float(self._absmax.max())
        extremes = self._extremes()
        row: dict[str, Any] = {
            "group": self.group.name,
            "block": self._index,
            "tokens": self.count,
            "absmax": absmax,
            "rms": rms,
            "typical": typical,
            "ratio": absmax / rms if rms else 0.0,
            "extreme": {
                "channels": len(extremes.channel.unique()),
                "tokens": len(extremes.row.unique()) / count,
            },
        }
        if self.count < FEWEST:
            extremes = extremes.where(extremes.row < 0)
        row["massive"] = self._massive(extremes, typical, ids, spell)
        row["systematic"] = self._systematic(extremes, rms)
        return {**row, "means": means(row)}

    def _massive(self, extremes: _Values, typical: float, ids: Tensor, spell: Callable[[int], str]) -> dict[str, Any]:
        found = extremes.where(extremes.size > MASSIVE * typical)
        often = torch.bincount(found.channel, minlength=self.group.width) >= LARGE_SHARE * self.count
        found = found.where(~often[found.channel])
        largest = torch.zeros(self.group.width).scatter_reduce_(0, found.channel, found.size, "amax")
        channels = [c for c in largest.argsort(descending=True).tolist()[:LISTED] if largest[c] > 0]
        cells = found.cell[found.cell >= 0].unique()
        positions = Counter((cells % ids.shape[1]).tolist())
        names = Counter(ids.flatten().cpu()[cells].tolist())
        first = sum(1 for position in (cells % ids.shape[1]).tolist() if position == 0)
        return {
            "channels": channels,
            "tokens": len(found.row.unique()) / max(self.count, 1),
            "positions": [position for position, _ in positions.most_common(LISTED)],
            "first_share": first / len(cells) if len(cells) else None,
            "token_names": [[spell(token), times] for token, times in names.most_common(5)],
        }

    def _systematic(self, extremes: _Values, rms: float) -> list[dict[str, Any]]:
        share = torch.bincount(extremes.channel, minlength=self.group.width) / max(self.count, 1)
        channels = (share >= LARGE_SHARE).nonzero()[:, 0].tolist() if self.count else []
        absmax = self._absmax.cpu()
        channels.sort(key=lambda channel: (-float(share[channel]), -float(absmax[channel])))
        return [
            {
                "channel": channel,
                "absmax": float(absmax[channel]),
                "ratio": float(absmax[channel]) / rms,
                "tokens": float(share[channel]),
            }
            for channel in channels[:LISTED]
        ]


def _typical(square: Tensor, count: int, *, zeros: bool) -> float:
    """RMS of the median channel; dead channels say nothing about it and count only with `zeros`."""
    alive = square if zeros else square[square > 0]
    return float((alive.median() / count).sqrt()) if len(alive) and count else 0.0


def _threshold(square: Tensor, count: int, *, zeros: bool) -> float:
    """Above what a value is extreme, for these sums of squares over `count` tokens."""
    rms = float((square.mean() / max(count, 1)).sqrt())
    # a little below while more may come: the sums round up and down
    return max(EXTREME * _typical(square, count, zeros=zeros), rms) * (0.999 if zeros else 1.0)


def means(row: dict[str, Any]) -> str:
    """What static activation quantization would do with this input, and which move helps."""
    if not row["tokens"]:
        return "No token of this text came here: nothing is known about it, so use more text, or other text."
    if row["tokens"] < FEWEST:
        return f"Only {row['tokens']} tokens came here, too few to tell massive tokens from systematic channels."
    massive, systematic = row["massive"], row["systematic"]
    said = []
    if massive["channels"]:
        said.append(_of_massive(row))
    if systematic:
        said.append(_of_systematic(systematic))
    if not said and row["extreme"]["channels"]:
        said.append(
            f"extremes of up to {row['ratio']:,.0f} x the RMS are scattered over {row['extreme']['channels']:,} "
            f"channels and {row['extreme']['tokens']:.1%} of the tokens: a static scale must hold them all, one scale "
            "per token confines them, a rotation spreads them; smoothing has no fixed channel to work on"
        )
    if not said:
        said.append(
            f"no extremes, the largest value is {row['ratio']:.0f} x the RMS: "
            "int8 inputs work with scales per token, and with static ones too"
        )
    text = "; and ".join(said)
    return f"{text[0].upper()}{text[1:]}."


def _of_massive(row: dict[str, Any]) -> str:
    massive, step = row["massive"], row["absmax"] / 127.5
    tokens = round(massive["tokens"] * row["tokens"])
    count = len(massive["channels"])
    lost = step / 2 > row["typical"]
    return (
        f"massive activations (up to {row['absmax'] / row['typical']:,.0f} x the typical value) in {count} "
        f"channel{'s' * (count != 1)} ({_few(massive['channels'])}) on {tokens:,} of {row['tokens']:,} tokens, "
        f"{where(massive)}: one static int8 scale would have steps of {step / row['typical']:,.1f} x the typical value"
        f"{' and round most of the rest to zero' * lost}, so give each token its own scale or keep these channels as "
        "outlier columns; smoothing would pay on every token for a few"
    )


def where(massive: dict[str, Any]) -> str:
    """Where massive activations stand, in words."""
    if massive["first_share"] is None:
        return "at positions unknown"
    if massive["first_share"] >= 0.9:
        return "at the first position"
    names = massive["token_names"][:3]
    return "most often on " + ", ".join(name for name, _ in names)


def _of_systematic(systematic: list[dict[str, Any]]) -> str:
    count, top = len(systematic), systematic[0]
    listed = f"{count}{' or more' * (count == LISTED)} systematic channel{'s' * (count != 1)}"
    return (
        f"{listed} ({_few([item['channel'] for item in systematic])}), {'the first ' * (count > 1)}extreme on "
        f"{top['tokens']:.0%} of the tokens: a scale per token has to hold {'them' if count > 1 else 'it'} too, so "
        "smooth, rotate, or keep outlier columns"
    )


def _few(channels: list[int], most: int = 4) -> str:
    more = len(channels) - most
    return ", ".join(map(str, channels[:most])) + (f" and {more} more" if more > 0 else "")
