"""Text from a data set of the Hugging Face hub: `hf:NAME[:config][:split][:column]`.

Rows are streamed, so a large data set is not downloaded whole: the first 5,000 rows are read, or those of a
slice (`hf:allenai/c4:en:train[:2000]`). It needs the optional package `datasets`.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from subeight.errors import TextError
from subeight.text.rows import Document, document_of

ROWS = 5000


@dataclass(frozen=True)
class Corpus:
    """Which rows of which data set, and the column that holds the text or the messages."""

    name: str
    config: str | None = None
    split: str = "train"
    first: int = 0
    last: int = ROWS
    column: str = "text"

    @classmethod
    def parse(cls, source: str) -> "Corpus":
        """Reads `hf:NAME[:config][:split][:column]`; a part left empty keeps its default."""
        # colons inside brackets are those of a slice
        parts = re.split(r":(?![^\[]*\])", source.removeprefix("hf:"))
        name, config, split, column = [*parts, "", "", ""][:4]
        match = re.fullmatch(r"([^\[\]]*)(?:\[(\d*):(\d*)\])?", split)
        if not name or len(parts) > 4 or match is None:
            raise TextError(
                f"{source!r} does not name a data set: write hf:NAME[:config][:split][:column], "
                "for example hf:wikitext:wikitext-2-raw-v1:train[:2000]:text"
            )
        first = int(match[2] or 0)
        last = int(match[3]) if match[3] else first + ROWS
        return cls(name, config or None, match[1] or "train", first, last, column or "text")


def read_corpus(source: str) -> list[Document]:
    """The documents of a data set of the hub."""
    corpus = Corpus.parse(source)
    documents = []
    for number, row in enumerate(_rows(corpus, source), start=corpus.first):
        if corpus.column not in row:
            raise TextError(
                f"{source!r} has no column {corpus.column!r}: its columns are {', '.join(row)}, "
                "write hf:NAME:config:split:COLUMN"
            )
        document = document_of(_as_row(row, corpus.column), f"{source}, row {number}", f"{corpus.name}:{number}")
        if document is not None:
            documents.append(document)
    return documents


def _rows(corpus: Corpus, source: str) -> Iterator[Mapping[str, Any]]:
    try:
        import datasets
    except ImportError as error:
        raise TextError(
            f"{source!r} needs the package `datasets`: pip install 'subeight[data]', or give a local file"
        ) from error
    try:
        rows = datasets.load_dataset(corpus.name, corpus.config, split=corpus.split, streaming=True)
        yield from islice(iter(rows), corpus.first, corpus.last)
    except (OSError, ValueError) as error:
        raise TextError(
            f"{source!r} cannot be read ({error}): check the name, config and split, or give a local file"
        ) from error


def _as_row(row: Mapping[str, Any], column: str) -> dict[str, Any]:
    value = row[column]
    named = {key: row[key] for key in ("id", "category", "completion", "choices", "answer") if key in row}
    return {**named, ("messages" if isinstance(value, list) else "text"): value if value is not None else ""}
