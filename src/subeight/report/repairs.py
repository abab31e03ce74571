"""How to apply what a diagnosis prescribes: a command or a sentence for each repair of a record."""

import shlex
from collections.abc import Mapping
from typing import Any

from subeight.report import facts, words
from subeight.report.diagnosis import Cause, Diagnosis, texts
from subeight.report.markup import Html, Node, bullets, code, join, tag


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
        command = ["subeight", "quantize", baseline or "BASELINE", "--recipe", told.recipe]
        parts.append(tag("p", "The recipe is ", code(told.recipe), ". To apply it:"))
        parts.append(tag("pre", shlex.join(command), class_="commands"))
    return parts


def restored(told: Diagnosis) -> list[str]:
    """The linears that the prescription restores."""
    found = [name for cause in told.causes for name in texts(cause.repair.get("restore"))]
    return list(dict.fromkeys(found))


def _line(cause: Cause) -> Node | None:
    lines = [_said(str(name), value) for name, value in cause.repair.items()]
    kept = [line for line in lines if line is not None]
    return join(kept, " ") if kept else None


def _said(name: str, value: Any) -> Node | None:
    if value is None:
        return None
    if name == "restore":
        names = texts(value)
        more = f" and {len(names) - 6:,} more" if len(names) > 6 else ""
        return join(
            ["Restore ", join([code(words.shortened(one, 72)) for one in names[:6]], ", "), more, " from the baseline."]
        )
    if name == "pin" and isinstance(value, Mapping):
        pins = [f"{package}=={version}" for package, version in value.items()]
        return join(["Pin the package: ", code(shlex.join(["pip", "install", *pins])), "."])
    if name == "config" and isinstance(value, Mapping):
        fields = [join(["set ", code(str(field)), " to ", code(_short(item))]) for field, item in value.items()]
        return join(["In the candidate's ", code("config.json"), ", ", join(fields, ", "), "."])
    opening = {
        "baseline": "Measure it against another baseline: ",
        "tokenizer": "Correct the tokenizer: ",
        "recalibrate": "Calibrate again: ",
    }.get(name, f"{name.replace('_', ' ').capitalize()}: ")
    return join([opening, code(_short(value)), "."])


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        value = ", ".join(f"{key} {item}" for key, item in value.items())
    elif isinstance(value, list):
        value = ", ".join(str(item) for item in value)
    return words.shortened(str(value), 200)
