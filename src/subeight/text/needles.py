"""Prompts that ask for something said long ago: numbers hidden at a depth in text of any length, written here.

One number is the passkey test (Mohtashami and Jaggi 2023, https://arxiv.org/abs/2305.16300); several, of which one is
asked for, are the multi-needle test (RULER, Hsieh et al. 2024, https://arxiv.org/abs/2404.06654).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from subeight.errors import TextError
from subeight.text.tokens import Tokenizer, encode, prefix_of

NAMES = (
    "the harbour", "the library", "the old mill", "the museum", "the station", "the garden", "the bakery", "the tower",
    "the school", "the bridge", "the market", "the theatre", "the chapel", "the workshop", "the orchard", "the inn",
)  # fmt: skip
FILLER = (
    "The ferry crosses twice a day in summer and once in winter.",
    "A baker who rises at three sees more of the night than of the morning.",
    "Rain had filled the ditches, and the road to the village was closed.",
    "She counted the steps to the top and never came to the same number twice.",
    "Most of the letters were about the weather and the price of hay.",
    "The orchestra tuned for so long that some took it for the first piece.",
    "Nobody in the valley could say who had built the wall.",
    "The clock in the hall was seven minutes fast, and everyone knew it.",
    "They sold honey, candles and, in good years, a little wine.",
    "The lamp was lit at dusk by a man who lived alone beside it.",
    "Snow fell late that year, and the goats were kept inside until April.",
    "He repaired shoes on Mondays and radios on all other days.",
    "The river turns south there and loses half of its speed.",
    "A map of the coast hung over the stove and had gone brown.",
    "In the end the committee agreed on a smaller door.",
    "The train stops only when somebody waves.",
    "Two of the apple trees bore fruit, the third only flowers.",
    "The teacher kept a jar of buttons, one for every year.",
    "Boats were painted in spring, fences in autumn, and houses never.",
    "It takes an hour on foot, or a quarter of one if the gate is open.",
)
NEEDLE = "The pass number of {name} is {number}."
QUESTION = " Remember what was said above. The pass number of {name} is"
DIGITS = 5


@dataclass(frozen=True)
class Needle:
    """One prompt [ids] whose last tokens, from `answer` on, are the number that was asked for."""

    ids: tuple[int, ...]
    answer: int
    length: int
    depth: float
    count: int


def needles(
    tokenizer: Tokenizer,
    lengths: Sequence[int],
    depths: Sequence[float],
    count: int = 1,
    repeats: int = 1,
    seed: int = 0,
) -> list[Needle]:
    """A prompt for each length (never longer), depth (0 first, 1 last) and repeat, with `count` numbers hidden in it.

    With several, those that are not asked for lie at random depths.

    Raises:
        TextError: a length is too short for the numbers and the question, or there are more numbers than names.
    """
    if not 1 <= count <= len(NAMES):
        raise TextError(f"{count} numbers were to be hidden; give 1 to {len(NAMES)}.")
    draw = random.Random(seed)
    return [
        _needle(tokenizer, length, depth, count, draw) for length in lengths for depth in depths for _ in range(repeats)
    ]


def _needle(tokenizer: Tokenizer, length: int, depth: float, count: int, draw: random.Random) -> Needle:
    names = draw.sample(NAMES, count)
    numbers = [str(draw.randrange(10 ** (DIGITS - 1), 10**DIGITS)) for _ in names]
    said = [NEEDLE.format(name=name, number=number) for name, number in zip(names, numbers, strict=True)]
    places = [depth, *(draw.random() for _ in names[1:])]
    asked = QUESTION.format(name=names[0])
    question = encode(f"{asked} {numbers[0]}", tokenizer)
    answer = len(question) - len(encode(asked, tokenizer))
    sentences = [draw.choice(FILLER) for _ in range(length // 4)]
    start = prefix_of(tokenizer)
    room = length - len(start) - len(question)
    low, high = 0, len(sentences)
    while low < high:  # the most sentences that leave room for the question
        middle = (low + high + 1) // 2
        if len(encode(_story(sentences[:middle], said, places), tokenizer)) <= room:
            low = middle
        else:
            high = middle - 1
    story = encode(_story(sentences[:low], said, places), tokenizer)
    if len(story) > room:
        raise TextError(f"{length} tokens hold no question about {count} numbers; give a longer context.")
    ids = [*start, *story, *question]
    return Needle(tuple(ids), len(ids) - answer, length, depth, count)


def _story(sentences: Sequence[str], said: Sequence[str], places: Sequence[float]) -> str:
    """The sentences, with what is said put in at its places."""
    found = list(sentences)
    for place, sentence in sorted(zip(places, said, strict=True), reverse=True):
        found.insert(round(place * len(sentences)), sentence)
    return " ".join(found)
