"""What the evaluation reaches and the calibration does not: scripts, tokens, special tokens.

A method tunes scales to the text it saw. Prompts in another script, or chat marks that calibration never
held, reach channels and ranges that no scale was chosen for; this says so before anything is quantized.
"""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from subeight.text.tokens import Tokenizer

COMMON = (
    "MODIFIER",
    "MATHEMATICAL",
    "FEMININE",
    "MASCULINE",
    "MICRO",
    "DOUBLE",
    "SCRIPT",
    "BLACK",
    "INFORMATION",
)
WIDTHS = ("FULLWIDTH ", "HALFWIDTH ")


@dataclass(frozen=True)
class Coverage:
    """Two texts side by side; shares are of letters (scripts) and of tokens."""

    scripts_seen: dict[str, float]
    scripts_reached: dict[str, float]
    unseen_tokens: float  # share of the evaluation's tokens whose id calibration never holds
    unseen_special: list[str]
    warnings: list[str]

    def as_dict(self) -> dict[str, Any]:
        """For a record's numbers."""
        return asdict(self)


def scripts_of(text: str) -> Counter[str]:
    """How many letters of `text` belong to which Unicode script: Latin, Cyrillic, Han ..."""
    counts: Counter[str] = Counter()
    for character, count in Counter(text).items():
        script = _script(character)
        if script is not None:
            counts[script] += count
    return counts


def compare_coverage(
    seen: Sequence[Sequence[int]],
    reached: Sequence[Sequence[int]],
    tokenizer: Tokenizer,
    few: float = 0.01,
    many: float = 0.4,
) -> Coverage:
    """Compares the ids of calibration (`seen`) and evaluation (`reached`).

    Warned about: a script with more than `few` of the evaluation's letters and less than a tenth of that
    share in calibration; more than `many` tokens that it never holds; special tokens that it never holds.
    """
    known = {token for row in seen for token in row}
    tokens = Counter(token for row in reached for token in row)
    unseen = sum(count for token, count in tokens.items() if token not in known) / max(tokens.total(), 1)
    special = [
        str(tokenizer.decode([token]))
        for token in sorted(set(tokenizer.all_special_ids) & set(tokens))
        if token not in known
    ]
    scripts = [_shares(rows, tokenizer) for rows in (seen, reached)]
    warnings = _warn_scripts(scripts[0], scripts[1], few)
    if unseen > many:
        warnings.append(
            f"{unseen:.0%} of the evaluation's tokens never occur in calibration: calibrate on text more like it"
        )
    if special:
        warnings.append(
            f"the evaluation holds special tokens that calibration never does ({', '.join(special)}): "
            "calibrate on text of the same form, conversations for conversations"
        )
    return Coverage(scripts[0], scripts[1], unseen, special, warnings)


def _shares(rows: Sequence[Sequence[int]], tokenizer: Tokenizer) -> dict[str, float]:
    counts: Counter[str] = Counter()
    for row in rows:
        counts += scripts_of(tokenizer.decode(list(row), skip_special_tokens=True))
    total = counts.total()
    return {script: count / total for script, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))}


def _warn_scripts(seen: dict[str, float], reached: dict[str, float], few: float) -> list[str]:
    return [
        f"{share:.1%} of the evaluation's letters are {script}, of calibration's "
        f"{seen.get(script, 0.0):.1%}: add {script} text to calibration"
        for script, share in reached.items()
        if share > few and seen.get(script, 0.0) < share / 10
    ]


@lru_cache(maxsize=65536)
def _script(character: str) -> str | None:
    # the standard library has no script property; the first word of a letter's name is its script
    if not unicodedata.category(character).startswith("L"):
        return None
    name = unicodedata.name(character, "")
    for width in WIDTHS:
        name = name.removeprefix(width)
    first = name.split(" ")[0]
    if not first or first in COMMON:
        return None
    return {"CJK": "Han", "IDEOGRAPHIC": "Han"}.get(first, first.capitalize())
