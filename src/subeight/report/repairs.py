"""How to apply what a diagnosis prescribes: a command or a sentence for each repair of a record."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from subeight.report import facts, words
from subeight.report.diagnosis import Cause, Diagnosis, texts
from subeight.report.markup import Html, Node, bullets, code, join, tag

_REQUANTIZED = frozenset({"restore", "weights", "recalibrate", "ranges"})
_OPENINGS = {
    "baseline": "Measure it against another baseline: ",
    "server": "Correct the server: ",
    "tokenizer": "Take from the baseline's tokenizer files: ",
    "recalibrate": "Calibrate again: ",
}


def share(value: facts.Measure) -> Html:
    """A share with its interval, as a point on a line from nothing to all."""
    if value.value is None:
        return tag("span", words.DASH, class_="share")
    low = value.value if value.low is None else value.low
    high = value.value if value.high is None else value.high
    start, end, middle = (100 * min(1.0, max(0.0, part)) for part in (low, high, value.value))
    band = tag("i", class_="band", style=f"left:{start:.1f}%;width:{max(0.0, end - start):.1f}%")
    dot = tag("i", class_="dot", style=f"left:{middle:.1f}%")
    line = tag("span", band, dot, class_="line", aria_hidden="true")
    return tag(
        "span",
        line,
        tag("b", words.percent(value.value)),
        " ",
        tag("span", words.percent_interval(value.low, value.high), class_="ends"),
        class_="share",
    )


def apply(told: Diagnosis, baseline: str | None) -> list[Html]:
    """What to do, in order; a recipe is one command, and each other repair says itself."""
    parts: list[Html] = []
    others = [line for cause in told.causes if (line := _line(cause)) is not None]
    if others:
        parts.append(bullets(others) if len(others) > 1 else tag("p", others[0]))
    if told.recipe:
        parts.append(tag("p", "The repair as a recipe: ", code(told.recipe), "."))
        if stored(told) or any(set(cause.repair) & _REQUANTIZED for cause in told.causes):
            command = ["subeight", "quantize", baseline or "BASELINE", "--recipe", told.recipe]
            parts.append(tag("pre", shlex.join(command), class_="commands"))
    return parts


def stored(told: Diagnosis) -> list[tuple[str, str]]:
    """The linears that the prescription stores anew, and how."""
    formats = told.prescription.formats if told.prescription else {}
    if not formats:
        formats = dict.fromkeys(name for cause in told.causes for name in texts(cause.repair.get("restore")))
    kept = "as in the baseline"
    return [(str(name), kept if value is None else str(value)) for name, value in formats.items()]


def _line(cause: Cause) -> Node | None:
    lines = [_said(str(name), value) for name, value in cause.repair.items()]
    kept = [line for line in lines if line is not None]
    return join(kept, " ") if kept else None


def _said(name: str, value: Any) -> Node | None:
    if name == "baseline" and value is None:
        return join(["Find the right full-precision model and give it with ", code("--baseline"), "."])
    if value is None or isinstance(value, bool) or name == "how":
        return None
    if name == "restore":
        return join(["Restore ", _some(texts(value)), " from the baseline."])
    if name == "weights" and isinstance(value, Mapping):
        formats = list(dict.fromkeys(str(item) for item in value.values()))
        chosen = [[str(key) for key, item in value.items() if str(item) == one] for one in formats]
        parts = [join([_some(names), " as ", code(one)]) for names, one in zip(chosen, formats, strict=True)]
        return join(["Store anew: ", join(parts, "; "), "."])
    if name == "ranges" and isinstance(value, Mapping):
        names = [str(key) for key in value]
        return join(["Calibrate the input ranges of ", _some(names), " again, on text like these prompts."])
    if name == "kernel" and isinstance(value, list):
        return join(["Run ", _some(texts(value)), " on another kernel, or correct how they are loaded."])
    if name == "pin" and isinstance(value, Mapping):
        pins = [f"{package}=={version}" for package, version in value.items()]
        return join(["Pin the package: ", code(shlex.join(["pip", "install", *pins])), "."])
    if name == "config" and isinstance(value, Mapping):
        fields = [join(["set ", code(str(field)), " to ", code(_short(item))]) for field, item in value.items()]
        return join(["In the candidate's ", code("config.json"), ", ", join(fields, ", "), "."])
    opening = _OPENINGS.get(name, f"{name.replace('_', ' ').capitalize()}: ")
    return join([opening, code(_short(value)), "."])


def _some(names: Sequence[str], limit: int = 6) -> Html:
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return join([join([code(words.shortened(name, 72)) for name in names[:limit]], ", "), more])


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        value = ", ".join(f"{key} {item}" for key, item in value.items())
    elif isinstance(value, list):
        value = ", ".join(str(item) for item in value)
    return words.shortened(str(value), 200)
