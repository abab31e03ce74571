"""What an allocation may spend: bits per weight, bytes, or loss. Strict: one number, one unit."""

import math
import re
from dataclasses import dataclass

from subeight.errors import InputError

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_NUMBER = r"(\d+(?:\.\d+)?|\.\d+)"
_BITS = re.compile(rf"{_NUMBER}\s*bits?", re.IGNORECASE)
_BYTES = re.compile(rf"{_NUMBER}\s*([kmg]i?b|b)", re.IGNORECASE)
_LOSS = re.compile(rf"kl\s*{_NUMBER}(e-?\d+)?", re.IGNORECASE)


@dataclass(frozen=True)
class Budget:
    """`kind` is `bits` (per weight of the blocks), `bytes` (embeddings and head too) or `kl` (of the whole model)."""

    text: str
    kind: str
    value: float


def parse_budget(text: str) -> Budget:
    """`3.5 bits`, `90 MB` or `kl 0.05`.

    Raises:
        InputError: it is none of them, or nothing is left to spend.
    """
    asked = " ".join(text.split())
    if found := _BITS.fullmatch(asked):
        kind, value = "bits", float(found[1])
    elif found := _BYTES.fullmatch(asked):
        kind, value = "bytes", float(found[1]) * _UNITS[found[2].upper()]
    elif found := _LOSS.fullmatch(asked):
        kind, value = "kl", float(found[1] + (found[2] or ""))
    else:
        raise InputError(f"--budget was given {text!r}; say for instance '3.5 bits', '90 MB' or 'kl 0.05'.")
    if not 0 < value < math.inf:
        raise InputError(f"--budget was given {text!r}, which buys nothing; give a number above 0.")
    return Budget(asked, kind, value)
