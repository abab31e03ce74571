"""What an allocation may spend: bits per weight, bytes, loss, or time. Strict: one number, one unit."""

import math
import re
from dataclasses import dataclass

from subeight.errors import InputError

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_NUMBER = r"(\d+(?:\.\d+)?|\.\d+)"
_BITS = re.compile(rf"{_NUMBER}\s*bits?", re.IGNORECASE)
_BYTES = re.compile(rf"{_NUMBER}\s*([kmg]i?b|b)", re.IGNORECASE)
_LOSS = re.compile(rf"kl\s*{_NUMBER}(e-?\d+)?", re.IGNORECASE)
_LATENCY = re.compile(rf"latency\s*{_NUMBER}\s*ms", re.IGNORECASE)


@dataclass(frozen=True)
class Budget:
    """`kind` is `bits` (per weight of the blocks), `bytes` (embeddings and head too), `kl` (of the whole model) or
    `latency` (seconds of one token, head included)."""

    text: str
    kind: str
    value: float


def parse_budget(text: str) -> Budget:
    """`3.5 bits`, `90 MB`, `kl 0.05` or `latency 20 ms`.

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
    elif found := _LATENCY.fullmatch(asked):
        kind, value = "latency", float(found[1]) / 1e3
    else:
        raise InputError(
            f"--budget was given {text!r}; say for instance '3.5 bits', '90 MB', 'kl 0.05' or 'latency 20 ms'."
        )
    if not 0 < value < math.inf:
        raise InputError(f"--budget was given {text!r}, which buys nothing; give a number above 0.")
    return Budget(asked, kind, value)
