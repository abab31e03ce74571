"""`inspect`: the outlier x-ray. Which weights stretch their scales, which inputs are extreme, what to do."""

from collections.abc import Mapping
from typing import Any

from subeight.records import Record
from subeight.report import experts, facts, figures, words
from subeight.report.facts import Layer
from subeight.report.markup import Column, Html, Node, bullets, code, folded, prose, table, tag
from subeight.report.section import Picture, Section, Tile

ORDER = 40
_FEW = 12
_MASSIVE, _SYSTEMATIC, _CALM = "massive, on few tokens", "systematic channels", "neither"


def summary(records: list[Record]) -> list[Node]:
    """The sentences that the x-ray itself ends with."""
    return [facts.text(line) for record in records for line in record.numbers.get("summary") or []]


def tiles(_records: list[Record]) -> list[Tile]:
    """None: the x-ray has no single number."""
    return []


def draw(records: list[Record]) -> list[Section]:
    """Weights, inputs, and what the calibration text does not reach."""
    found = []
    for record in records:
        linears = facts.mappings(record.numbers.get("linears"))
        inputs = facts.mappings(record.numbers.get("inputs"))
        found += [
            *_weights(linears),
            *_inputs(inputs),
            *experts.coverage(record.numbers),
            *_coverage(facts.mapping(record.numbers.get("coverage"))),
        ]
    return found


def _weights(linears: list[Mapping[str, Any]]) -> list[Section]:
    if not linears:
        return []
    content: list[Html | Picture] = []
    points = [p for p in facts.worst_of_each(facts.layers(linears, "range_over_rms")) if p.value > 0]
    if points:
        caption = (
            "The largest weight over the root mean square of its linear. The further the extremes reach, the"
            " wider the steps of the grid for all the ordinary weights between them."
        )
        content.append(Picture(figures.by_layer(points, "range over RMS"), caption))
    shares = error_shares(linears)
    if shares:
        caption = (
            "What share of the rounding error goes away when the largest weights are set apart and the rest"
            " is rounded again. High boxes call for outliers set apart, low ones for better rounding."
        )
        content.append(Picture(figures.error_shares(shares), caption))
    worst = sorted(linears, key=lambda item: -(facts.number(item.get("range_over_rms")) or 0))
    content += [tag("h3", "The furthest stretched"), _linears(worst[:_FEW])]
    if len(worst) > _FEW:
        content.append(folded(f"All {len(worst):,} linears", _linears(worst[:2000])))
    return [Section("Outliers in the weights", content)]


def error_shares(linears: list[Mapping[str, Any]]) -> dict[str, dict[str, list[Layer]]]:
    """The shares of the rounding error: by format, then by how many of the largest values were set apart."""
    found: dict[str, dict[str, list[Layer]]] = {}
    for item in linears:
        for name, tops in facts.mapping(item.get("error_share")).items():
            for top in facts.mapping(tops):
                found.setdefault(str(name), {}).setdefault(str(top), [])
    for name, by_top in found.items():
        for top in by_top:
            items = [{**item, "_share": _share(item, name, top)} for item in linears]
            by_top[top] = facts.layers(items, "_share")
    return found


def _share(item: Mapping[str, Any], name: str, top: str) -> Any:
    return facts.mapping(facts.mapping(item.get("error_share")).get(name)).get(top)


def _linears(items: list[Mapping[str, Any]]) -> Html:
    formats = list(dict.fromkeys(str(name) for item in items for name in facts.mapping(item.get("error"))))
    columns = [
        Column("linear"), Column("range / RMS", True), Column("kurtosis", True),
        *(Column(f"error at {name}", True) for name in formats), Column("what it means", wide=True),
    ]  # fmt: skip
    lines = []
    for item in items:
        errors = facts.mapping(item.get("error"))
        numbers = [item.get("range_over_rms"), item.get("kurtosis"), *(errors.get(name) for name in formats)]
        shown = [words.significant(facts.number(value)) for value in numbers]
        lines.append(
            [code(words.shortened(facts.text(item.get("name")), 64)), *shown, prose(facts.text(item.get("means")))]
        )
    return table(columns, lines)


def _inputs(inputs: list[Mapping[str, Any]]) -> list[Section]:
    if not inputs:
        return []
    content: list[Html | Picture] = []
    groups = extremes(inputs)
    if groups:
        caption = (
            "How far the largest input of every group of linears reaches over the RMS of its inputs. Massive"
            " activations sit on a few tokens, mostly the first; systematic channels are large on many tokens"
            " and are what smoothing and rotations are for."
        )
        content.append(Picture(figures.input_extremes(groups), caption))
    telling = [item for item in inputs if _kind(item) != _CALM]
    telling.sort(key=lambda item: -(facts.number(item.get("ratio")) or 0))
    if telling:
        content += [tag("h3", "Channels that carry extremes"), _channels(telling[:_FEW])]
        if len(telling) > _FEW:
            content.append(folded(f"All {len(telling):,} inputs with extremes", _channels(telling[:2000])))
    return [Section("Outliers in the inputs", content)]


def extremes(inputs: list[Mapping[str, Any]]) -> dict[str, list[Layer]]:
    """The reach of every group's input, by what carries it."""
    found: dict[str, list[Layer]] = {_MASSIVE: [], _SYSTEMATIC: [], _CALM: []}
    for item in inputs:
        kind = _kind(item)
        found[kind] += [point for point in facts.layers([item], "ratio", name="group") if point.value > 0]
    return {kind: points for kind, points in found.items() if points}


def _kind(item: Mapping[str, Any]) -> str:
    if facts.mapping(item.get("massive")).get("channels"):
        return _MASSIVE
    return _SYSTEMATIC if facts.mappings(item.get("systematic")) else _CALM


def _channels(items: list[Mapping[str, Any]]) -> Html:
    columns = [
        Column("input of"), Column("largest / RMS", True), Column("massive channels"),
        Column("on tokens", True), Column("systematic channels"), Column("what it means", wide=True),
    ]  # fmt: skip
    lines = []
    for item in items:
        massive = facts.mapping(item.get("massive"))
        systematic = facts.mappings(item.get("systematic"))
        share = facts.number(massive.get("tokens")) if massive.get("channels") else None
        lines.append([
            code(words.shortened(facts.text(item.get("group")), 64)),
            words.significant(facts.number(item.get("ratio"))),
            _some(massive.get("channels") or []),
            words.percent(share, 2),
            _some([channel.get("channel") for channel in systematic]),
            prose(facts.text(item.get("means"))),
        ])  # fmt: skip
    return table(columns, lines)


def _some(channels: list[Any], limit: int = 6) -> str:
    shown = ", ".join(str(channel) for channel in channels[:limit])
    return f"{shown} and {len(channels) - limit} more" if len(channels) > limit else shown or words.DASH


def _coverage(coverage: Mapping[str, Any]) -> list[Section]:
    if not coverage:
        return []
    found = [prose(facts.text(line)) for line in coverage.get("warnings") or []]
    said = (
        bullets(found, class_="warnings")
        if found
        else tag("p", "The calibration text reaches what the evaluation does.")
    )
    return [Section("What calibration does not reach", [said])]
