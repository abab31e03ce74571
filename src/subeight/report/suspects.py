"""What the examination of each suspect left in its details, shown as tables and figures."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from subeight.report import diagnosis, diagnosis_figures, facts, scores, words
from subeight.report.diagnosis import Diagnosis, Step
from subeight.report.markup import Column, Html, Node, code, folded, join, pairs, table, tag
from subeight.report.section import Picture

_FEW, _MANY = 12, 2000
_NAMES = frozenset({
    "name", "names", "place", "places", "field", "tensor", "linear", "group", "tap", "what", "before", "after",
    "package", "baseline", "candidate", "expert", "probe", "kernel",
})  # fmt: skip
_SHARES = frozenset({"recovered", "share", "clip_rate"})
_TITLES = {
    "categories": "By category", "ranges": "Ranges that calibration did not reach", "experts": "Experts",
    "channels": "Channels that calibration did not reach", "changes": "What changed, ranked by suspicion",
    "probes": "Probes of the kernels", "recalibrated": "Calibrated again",
}  # fmt: skip
Parts = list[Html | Picture]


def details(step: Step, told: Diagnosis) -> Parts:
    """Everything in the details of one suspect: what this page knows as it is best read, the rest as plain tables."""
    draw, known = _KNOWN.get(step.suspect, (_nothing, frozenset()))
    rest = {name: value for name, value in step.details.items() if name not in known}
    single = {name: value for name, value in rest.items() if isinstance(value, bool | int | float | str)}
    parts = [part for name, value in rest.items() if name not in single for part in anything(name, value)]
    if single:
        title = "Further numbers" if parts or draw is not _nothing else "The numbers"
        parts += [tag("h3", title), _pairs(single)]
    return [*draw(step, told), *parts]


def anything(name: str, value: Any) -> Parts:
    """A value of any shape under its name: a table of mappings, pairs, a list, or one line."""
    title = _TITLES.get(name, name.replace("_", " ").capitalize())
    heading = tag("h3", title)
    if isinstance(value, Mapping) and value:
        nested = [{"name": key, **item} for key, item in value.items() if isinstance(item, Mapping)]
        if len(nested) == len(value):
            return [heading, _capped(nested)]
        return [heading, _pairs(value)]
    if items := facts.mappings(value):
        return [heading, _capped(items)]
    if value is None or value in ([], {}, "", "none"):
        return []
    return [tag("p", f"{title}: ", cell(name, value), ".")]


def _pairs(values: Mapping[str, Any]) -> Html:
    """Names and values; folded away when they are many."""
    shown = pairs((_named(key), _measured(key, values)) for key in _fields([values])[:_MANY])
    return folded(words.count(len(values), "value"), shown) if len(values) > 2 * _FEW else shown


def _named(key: str) -> Node:
    """A field in words, a place of the model as it is called."""
    return code(words.shortened(key, 64)) if "." in key else key.replace("_", " ")


def listing(items: Sequence[Mapping[str, Any]]) -> Html:
    """A table of mappings, a column for each field that any of them has; intervals stand below their value."""
    fields = _fields(items)
    numeric = [
        all(item.get(key) is None or facts.number(item.get(key)) is not None for item in items) for key in fields
    ]
    columns = [Column(key.replace("_", " "), right) for key, right in zip(fields, numeric, strict=True)]
    return table(columns, [[_measured(key, item) for key in fields] for item in items])


def cell(name: str, value: Any) -> Node:
    """One value of a record as it reads best: numbers to three digits, names in code, lists in short."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return words.significant(facts.number(value))
    if isinstance(value, Mapping):
        return join([join([f"{key} ", cell("", item)]) for key, item in list(value.items())[:6]], ", ") or words.DASH
    if isinstance(value, list):
        more = f" and {len(value) - 6:,} more" if len(value) > 6 else ""
        return join([join([cell(name, item) for item in value[:6]], ", "), more]) if value else words.DASH
    if value is None or value == "":
        return words.DASH
    return code(words.shortened(value, 72)) if name in _NAMES else words.shortened(str(value), 300)


def _fields(items: Sequence[Mapping[str, Any]]) -> list[str]:
    """The fields of mappings, without the intervals, which stand below their values."""
    fields = list(dict.fromkeys(str(key) for item in items for key in item))
    return [key for key in fields if not (key.endswith("_ci") and key.removesuffix("_ci") in fields)]


def _measured(name: str, item: Mapping[str, Any]) -> Node:
    found = facts.measure(item, name)
    if name in _SHARES and found.value is not None:
        return scores.measured_share(found)
    return scores.measured(found) if found.low is not None else cell(name, item.get(name))


def _capped(items: Sequence[Mapping[str, Any]]) -> Html:
    """The first rows, the rest folded away."""
    if len(items) <= _FEW:
        return listing(items)
    return join([listing(items[:_FEW]), folded(f"All {len(items):,}", listing(items[:_MANY]))])


def _nothing(_step: Step, _told: Diagnosis) -> Parts:
    return []


def _baseline(step: Step, _told: Diagnosis) -> Parts:
    parts: Parts = []
    guilty = [place for cause in step.causes for place in cause.places]
    fields = facts.mappings(step.details.get("fields"))
    if fields:
        parts += [tag("h3", "Fields that differ"), _differing(fields)]
    differences = diagnosis.by_name(facts.mapping(step.details.get("differences")).items())
    excess = diagnosis.by_name(facts.mapping(step.details.get("excess")).items())
    if len(excess) > 1:
        caption = (
            "How far every quantized linear lies from the baseline's, in units of what rounding in its own format"
            " explains: at 1 it is a quantization of its namesake, far above it is another tensor."
        )
        parts += [tag("h3", "Is every linear a quantization of its namesake?")]
        parts.append(Picture(diagnosis_figures.among_all(excess, guilty, "distance over rounding's"), caption))
    if differences:
        worst = sorted(differences, key=lambda point: (point.name not in guilty, -point.value))
        rows = [(point.name, point.value) for point in worst]
        note = "Norm of the difference over that of the baseline's tensor, in one gauge."
        content = [tag("p", note, class_="muted"), _values(rows, "relative difference", guilty)]
        if any(name in guilty for name, _ in rows):
            parts += [tag("h3", "Tensors that differ the most"), *content]
        else:
            parts.append(folded(f"How much every tensor differs ({len(rows):,})", *content))
    gauge = facts.text(step.details.get("gauge"))
    if gauge and gauge != "none":
        parts.append(
            tag("p", f"The baseline was brought into the candidate's gauge first, by {gauge}.", class_="muted")
        )
    return parts


def _differing(fields: Sequence[Mapping[str, Any]]) -> Html:
    columns = [Column("field"), Column("baseline"), Column("candidate")]
    sides = ("field", "baseline", "candidate")
    return table(
        columns,
        [
            [code(words.shortened(facts.text(item.get(side), words.DASH), 72)) for side in sides]
            for item in fields[:_MANY]
        ],
    )


def _kernels(step: Step, _told: Diagnosis) -> Parts:
    items = facts.mappings(step.details.get("layers"))
    points = diagnosis.by_name((facts.text(item.get("name")), item.get("relative_error")) for item in items)
    guilty = [place for cause in step.causes for place in cause.places]
    parts: Parts = []
    if points:
        caption = (
            "How far the output of every packed linear is from that of its dequantized twin, on the failing prompts."
            " Rounding alone leaves a low and level band; a point far above it computes something else."
        )
        parts.append(Picture(diagnosis_figures.among_all(points, guilty, "relative error of the output"), caption))
    largest = facts.number(step.details.get("logits_max"))
    if largest is not None:
        parts.append(tag("p", f"The largest difference of a logit of the whole model: {words.significant(largest)}."))
    return parts


def _layers(step: Step, told: Diagnosis) -> Parts:
    guilty = [place for cause in step.causes for place in cause.places]
    parts: Parts = []
    trials = diagnosis.trials(step.details)
    if trials:
        caption = (
            "The search, in the order it was made. Each test restores some linears in the candidate, stores them"
            " anew there, or quantizes them alone in the baseline, and measures the loss again on the same prompts:"
            " what share of it that gives back, or brings about. Bars are 95 % intervals, paired by prompt."
        )
        parts += [tag("h3", "The search"), Picture(diagnosis_figures.search(trials), caption)]
        parts.append(folded(f"Every test ({len(trials):,})", _trials(trials, told)))
    curve = diagnosis.curve(step.details)
    if len(curve) > 1:
        caption = (
            "Each point is a test: how many linears it restored, and the share of the loss that came back. A line that"
            " leaps up at the left is a culprit; one along the dots is damage that is spread evenly."
        )
        parts += [tag("h3", "How the loss comes back"), Picture(diagnosis_figures.recovery(curve), caption)]
    errors = diagnosis.by_name(facts.mapping(step.details.get("weight_errors")).items())
    if errors:
        figure = diagnosis_figures.among_all(errors, guilty, "error of the weight")
        parts += [tag("h3", "What the weights show"), Picture(figure, _ranked(errors, guilty))]
    sensitive = facts.mapping(step.details.get("sensitive"))
    if sensitive:
        said = "Restoring these recovers something, but rounding them anew costs as much: they are not broken."
        parts += [tag("h3", "Sensitive, not broken"), tag("p", said, class_="muted")]
        parts.append(_values(sorted(shares_of(sensitive), key=lambda row: -row[1]), "share of the loss", guilty))
    prior = facts.mappings(step.details.get("prior"))
    if prior:
        parts.append(folded(f"What was suspected first ({len(prior):,})", listing(prior[:_MANY])))
    return parts


def _ranked(errors: list[facts.Layer], guilty: Sequence[str]) -> str:
    caption = "The relative error of every linear's weight, which needs no experiment to see."
    ranks = [(name, place) for name in guilty if (place := diagnosis.rank(errors, name)) is not None]
    if not ranks:
        return caption
    said = words.listed([f"{words.shortened(name, 64)} is number {place:,}" for name, place in ranks[:4]])
    caption += f" Of {len(errors):,}, the largest first, {said}"
    hidden = all(place > len(errors) / 10 for _, place in ranks)
    return f"{caption}: looking at the weights would not have found it." if hidden else f"{caption}."


def _trials(trials: Sequence[diagnosis.Trial], told: Diagnosis) -> Html:
    columns = [
        Column("test", True), Column("what was done"), Column("linears", True), Column(told.axis, True),
        Column("share of the loss", True), Column("block forwards", True), Column("which"),
    ]  # fmt: skip
    lines: list[list[Node]] = []
    for index, trial in enumerate(trials, start=1):
        done = "quantized alone" if trial.what == "damage" else "restored" if trial.what == "restore" else trial.what
        count = words.DASH if trial.places is None else f"{trial.places:,}"
        shares, names = scores.measured_share(trial.recovered), cell("names", list(trial.names))
        cost = diagnosis.forwards(trial.block_forwards)
        lines.append([f"{index:,}", done, count, scores.measured(trial.loss), shares, cost, names])
    return table(columns, lines)


def shares_of(values: Mapping[str, Any]) -> list[tuple[str, float]]:
    """The numbers of a mapping, by name."""
    return [(str(name), found) for name, value in values.items() if (found := facts.number(value)) is not None]


def _values(rows: Sequence[tuple[str, float]], title: str, guilty: Iterable[str]) -> Html:
    """Names with one number each, the largest first; the guilty ones marked, the rest folded away."""
    marked = set(guilty)
    columns = [Column("tensor"), Column(title, True)]

    def drawn(shown: Sequence[tuple[str, float]]) -> Html:
        lines = [[code(words.shortened(name, 72)), words.significant(value)] for name, value in shown]
        return table(columns, lines, ["guilty" if name in marked else None for name, _ in shown])

    if len(rows) <= _FEW:
        return drawn(rows)
    return join([drawn(rows[:_FEW]), folded(f"All {len(rows):,} that differ", drawn(rows[:_MANY]))])


_KNOWN: dict[str, tuple[Callable[[Step, Diagnosis], Parts], frozenset[str]]] = {
    "baseline": (_baseline, frozenset({"fields", "differences", "gauge", "excess"})),
    "kernels": (_kernels, frozenset({"layers", "logits_max"})),
    "layers": (_layers, frozenset({"tests", "curve", "weight_errors", "prior", "sensitive"})),
}
