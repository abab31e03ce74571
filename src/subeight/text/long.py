"""Windows as long as a context, out of texts joined one after the other."""

from collections.abc import Sequence
from pathlib import Path

from subeight.errors import TextError
from subeight.text.calibration import cut, streams_of
from subeight.text.documents import read_documents
from subeight.text.tokens import Tokenizer, end_document, prefix_of


def long_windows(sources: Sequence[str | Path], tokenizer: Tokenizer, length: int, most: int) -> list[list[int]]:
    """Up to `most` windows of exactly `length` tokens, in the order of the sources, their categories and documents.

    Raises:
        TextError: all of the text is shorter than one window.
    """
    stream: list[int] = []
    for source in sources:
        for part in streams_of(read_documents(source, "evaluation"), tokenizer).values():
            stream = [*(end_document(stream, tokenizer) if stream else []), *part]
    windows = cut(stream, length, prefix_of(tokenizer))[:most]
    if not windows:
        names = ", ".join(map(str, sources))
        raise TextError(
            f"the text of {names} has {len(stream)} tokens, fewer than a context of {length}: give longer text."
        )
    return windows
