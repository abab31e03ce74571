"""The token batches that the methods see: windows of one length, balanced over the categories of the text.

The documents of one category are joined, with the end-of-text token between them, and cut in windows. Which
windows are taken is decided by the seed alone, through sha256, so that every machine and every version takes
the same ones.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch

from subeight.errors import TextError
from subeight.text.chat import render
from subeight.text.documents import BUILTIN, NAMES, name_of, read_documents
from subeight.text.hashing import hash_tokens
from subeight.text.rows import Document, naming
from subeight.text.tokens import Tokenizer, encode, end_document, prefix_of

SELF = "self"


@dataclass(frozen=True)
class CalibrationSpec:
    """What the user asks for: `sequences` windows of `length` tokens of `source`."""

    source: str = BUILTIN
    sequences: int = 32
    length: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        if self.sequences < 1 or self.length < 2:
            raise TextError(
                f"calibration of {self.sequences} sequences of {self.length} tokens: "
                "ask for at least 1 sequence and a length of at least 2"
            )


@dataclass(frozen=True, eq=False)
class Calibration:
    """Token batches for the methods, and the fingerprint that the calibration coordinate carries."""

    ids: torch.Tensor  # int64 [sequences, length]
    source: str
    seed: int
    hash: str
    categories: list[str]  # one a sequence
    added: int = 0  # of the sequences, so many at the end were added for the sake of starved experts
    forced: bool = False  # every expert of a mixture sees all tokens

    @classmethod
    def of(
        cls, ids: torch.Tensor, source: str, seed: int, categories: Sequence[str], *, forced: bool = False
    ) -> "Calibration":
        """A calibration of ready ids, as the engine makes of the model's own samples."""
        settings: dict[str, Any] = {"source": name_of(NAMES[0] if source == BUILTIN else source), "seed": seed}
        if forced:
            settings["forced"] = True
        fingerprint = hash_tokens(ids.tolist(), settings=settings)
        return cls(ids, source, seed, fingerprint, list(categories), forced=forced)

    def and_more(self, windows: Sequence[tuple[str, list[int]]]) -> "Calibration":
        """This calibration with further windows of (category, ids) behind its own."""
        if not windows:
            return self
        ids = torch.cat([self.ids, torch.tensor([ids for _, ids in windows], dtype=torch.int64)])
        names = [*self.categories, *(name for name, _ in windows)]
        made = Calibration.of(ids, self.source, self.seed, names, forced=self.forced)
        return replace(made, added=self.added + len(windows))

    def shown_to_all(self) -> "Calibration":
        """The same text, of which every expert sees all tokens: another calibration."""
        made = Calibration.of(self.ids, self.source, self.seed, self.categories, forced=True)
        return replace(made, added=self.added)


def calibrate(spec: CalibrationSpec, tokenizer: Tokenizer) -> Calibration:
    """Reads, tokenizes and draws the windows that `spec` asks for, without replacement."""
    windows, streams = _windows(spec, tokenizer, spec.sequences)
    if _count(windows) < spec.sequences:
        raise TextError(_too_short(spec, streams, _count(windows)))
    return _drawn(windows, spec, spec.sequences)


def calibrate_all(source: str, length: int, seed: int, tokenizer: Tokenizer) -> Calibration:
    """Every window of `length` tokens that the text has, in the order that `calibrate` would draw them."""
    spec = CalibrationSpec(source, 1, length, seed)
    windows, streams = _windows(spec, tokenizer, 1)
    if not _count(windows):
        raise TextError(_too_short(spec, streams, 0))
    return _drawn(windows, spec, _count(windows))


def _drawn(windows: dict[str, list[list[int]]], spec: CalibrationSpec, count: int) -> Calibration:
    drawn = list(islice(_draw(windows, spec.seed), count))
    ids = torch.tensor([window for _, window in drawn], dtype=torch.int64)
    return Calibration.of(ids, spec.source, spec.seed, [name for name, _ in drawn])


def further(spec: CalibrationSpec, tokenizer: Tokenizer, taken: torch.Tensor, most: int) -> list[tuple[str, list[int]]]:
    """Up to `most` more windows of `spec.source` that are not among `taken` [sequences, length], with categories.

    Windows half-way between others count too where the packaged text runs out.
    """
    windows, _ = _windows(spec, tokenizer, most + len(taken))
    known = {tuple(row) for row in taken.tolist()}
    return list(islice((one for one in _draw(windows, spec.seed) if tuple(one[1]) not in known), most))


Windows = dict[str, list[list[int]]]


def _windows(spec: CalibrationSpec, tokenizer: Tokenizer, wanted: int) -> tuple[Windows, dict[str, list[int]]]:
    """All windows of the text by category, and the text itself as rows of ids."""
    if spec.source == SELF:
        raise TextError(
            "`self` is text that the model samples, not text to read: "
            "pass `--calibration self` to a verb that has the model, such as `subeight quantize`"
        )
    prefix = prefix_of(tokenizer)
    if spec.length <= len(prefix):
        raise TextError(
            f"windows of {spec.length} tokens hold nothing but the tokenizer's {len(prefix)} first tokens: "
            "ask for a longer `length`"
        )
    streams = streams_of(read_documents(spec.source, part="calibration"), tokenizer)
    windows = {name: cut(stream, spec.length, prefix) for name, stream in streams.items()}
    if spec.source in (BUILTIN, *NAMES) and _count(windows) < wanted:
        # to a tokenizer of longer tokens the packaged text is short: windows half-way between help out
        for name, stream in streams.items():
            windows[name] += cut(stream[spec.length // 2 :], spec.length, prefix)
    return windows, streams


def cut(stream: list[int], length: int, prefix: list[int]) -> list[list[int]]:
    """Consecutive windows of exactly `length` tokens; each begins with `prefix`, which is never doubled."""
    windows, at = [], 0
    while at < len(stream):
        head = [] if stream[at : at + len(prefix)] == prefix else prefix
        window = head + stream[at : at + length - len(head)]
        if len(window) < length:
            break
        windows.append(window)
        at += length - len(head)
    return windows


def streams_of(documents: list[Document], tokenizer: Tokenizer) -> dict[str, list[int]]:
    """The documents of each category as one row of ids, each closed but the last."""
    by_category: dict[str, list[list[int]]] = {}
    for document in documents:
        by_category.setdefault(document.category, []).append(_ids_of(document, tokenizer))
    streams = {}
    for name, rows in by_category.items():
        closed = [end_document(row, tokenizer) for row in rows[:-1]]
        streams[name] = [token for row in [*closed, rows[-1]] for token in row]
    return streams


def _ids_of(document: Document, tokenizer: Tokenizer) -> list[int]:
    """The whole document as the model would see it, its completion included."""
    with naming(document):
        return _whole(document, tokenizer)


def _whole(document: Document, tokenizer: Tokenizer) -> list[int]:
    if document.messages is None:
        return encode((document.text or "") + (document.completion or ""), tokenizer)
    reply = [{"role": "assistant", "content": document.completion}] if document.completion else []
    return render([*document.messages, *reply], tokenizer, add_generation_prompt=False)


def _draw(windows: Windows, seed: int) -> Iterator[tuple[str, list[int]]]:
    """One window of each category in turn, until all are out."""

    waiting = {name: _shuffle(len(rows), f"{seed}\n{name}") for name, rows in windows.items()}
    while any(waiting.values()):
        for name, numbers in waiting.items():
            if numbers:
                yield name, windows[name][numbers.pop(0)]


def _shuffle(count: int, salt: str) -> list[int]:
    # library shuffles may change between versions, and the hash of `builtin` may not
    return sorted(range(count), key=lambda number: hashlib.sha256(f"{salt}\n{number}".encode()).digest())


def _count(windows: Windows) -> int:
    return sum(len(rows) for rows in windows.values())


def _too_short(spec: CalibrationSpec, streams: dict[str, list[int]], count: int) -> str:
    if count == 0:
        longest = max(len(stream) for stream in streams.values())
        return (
            f"the text of {spec.source!r} is shorter than one window: {longest} tokens in its longest "
            f"category, and a window has {spec.length}; give more text or a smaller `length`"
        )
    return (
        f"the text of {spec.source!r} gives {count} windows of {spec.length} tokens, and "
        f"{spec.sequences} were asked for: set `sequences` to {count} or fewer, or give more text"
    )
