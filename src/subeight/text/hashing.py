"""Fingerprints of token batches: the same ids and settings give the same 16 hex digits on every machine."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence

import numpy as np


def hash_tokens(
    sequences: Iterable[Sequence[int]],
    masks: Iterable[Sequence[bool]] = (),
    settings: Mapping[str, object] | None = None,
) -> str:
    """sha256 over ids, lengths, masks of scored tokens and settings, as 16 hex digits."""
    digest = hashlib.sha256(b"subeight tokens 1\n")
    for mark, dtype, rows in ((b"i", "<i8", sequences), (b"m", "u1", masks)):
        for row in rows:
            # the length before the values: [1, 2], [3] and [1], [2, 3] must differ
            digest.update(mark + len(row).to_bytes(8, "little"))
            digest.update(np.asarray(row, dtype=dtype).tobytes())
    digest.update(b"s" + json.dumps(dict(settings or {}), sort_keys=True, ensure_ascii=True).encode())
    return digest.hexdigest()[:16]


def hash_text(text: str) -> str:
    """sha256 of a text (a chat template), as 16 hex digits."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
