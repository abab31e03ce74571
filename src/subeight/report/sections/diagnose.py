"""`diagnose`: the story of a diagnosis. Verdict, where the loss is, suspect by suspect, repair, what is untested."""

from subeight.records import Record
from subeight.report import diagnosis, diagnosis_figures, facts, repairs, scores, suspects, words
from subeight.report.diagnosis import Cause, Diagnosis, Step
from subeight.report.markup import Column, Html, Node, bullets, code, folded, join, paragraph, prose, table, tag
from subeight.report.section import Picture, Section, Tile

ORDER = 5
_MARKS = {"cleared": "✓", "guilty": "!", "unknown": "?", "skipped": "–", "absent": "–"}
_FEW_PLACES = 8


def summary(records: list[Record]) -> list[Node]:
    """The verdict in words, as the diagnosis itself says it."""
    lines: list[Node] = []
    for record in records:
        told = diagnosis.diagnosis(record)
        first, *rest = told.words or (_headline(told),)
        lines += [paragraph(prose(first), class_="lead"), *(paragraph(prose(line)) for line in rest)]
    return lines


def tiles(records: list[Record]) -> list[Tile]:
    """What the one diagnosis recovered, what that costs, and what finding it out cost."""
    if len(records) != 1:
        return []
    told = diagnosis.diagnosis(records[0])
    best = told.prescription.recovered if told.prescription else told.recovered
    best = best if best.value is not None else told.recovered
    found = []
    if best.value is not None:
        found.append(
            Tile(words.percent(best.value), words.percent_interval(best.low, best.high), "of the loss recovered")
        )
    if told.bytes_added is not None:
        more = _signed_percent(told.share_added) if told.share_added else ""
        found.append(Tile(words.size(told.bytes_added), more, "added by the repair"))
    if told.evaluations is not None:
        found.append(Tile(f"{told.evaluations:,}", "evaluations", "of the loss, over all suspects"))
    if records[0].seconds:
        found.append(Tile(words.duration(records[0].seconds), "", "from first to last"))
    return found


def draw(records: list[Record]) -> list[Section]:
    """The story of each diagnosis, from its verdict to what it left out."""
    found = []
    for record in records:
        told = diagnosis.diagnosis(record)
        of = f": {words.shortened(facts.label_of(record), 28)}" if len(records) > 1 else ""
        baseline = facts.text(record.subject.get("baseline")) or None
        found += [_verdict(told, baseline, of), *_where(told, of), _strip(told, of)]
        found += [_suspect(step, told, of) for step in told.steps if step.verdict != "skipped"]
        found += [*_prescription(told, of), *_untested(told, of)]
    return found


def _headline(told: Diagnosis) -> str:
    if not told.causes:
        return "No suspect was found guilty."
    return " ".join(_sentence(cause) for cause in told.causes)


def _sentence(cause: Cause) -> str:
    where = words.listed([f"`{place}`" for place in cause.places[:4]])
    return cause.sentence or f"Guilty is the {cause.suspect or '?'}: {cause.kind or 'unknown kind'} in {where or '?'}."


def _verdict(told: Diagnosis, baseline: str | None, of: str) -> Section:
    if not told.causes:
        return Section(f"The verdict{of}", _nothing(told))
    told_above = " ".join(told.words)
    causes = [_cause(cause, cause.sentence not in told_above) for cause in told.causes]
    content: list[Html | Picture] = [tag("ol", *causes, class_="causes")]
    content += [tag("h3", "The repair"), paragraph(_repaired(told)), *repairs.apply(told, baseline)]
    return Section(f"The verdict{of}", content)


def _cause(cause: Cause, said: bool) -> Html:
    shown = [code(words.shortened(place, 72)) for place in cause.places[:_FEW_PLACES]]
    more = f" and {len(cause.places) - _FEW_PLACES:,} more" if len(cause.places) > _FEW_PLACES else ""
    kind = " · ".join(part.replace("_", " ") for part in (cause.suspect, cause.kind) if part)
    return tag(
        "li",
        tag("div", kind, class_="kind"),
        paragraph(prose(_sentence(cause))) if said or not cause.sentence else Html(""),
        tag("div", join(shown, " "), more, class_="places") if shown else Html(""),
        _recovered(cause.recovered),
    )


def _recovered(share: facts.Measure) -> Html:
    if share.value is None:
        return Html("")
    return paragraph(repairs.share(share), tag("span", " of the loss recovered", class_="muted"))


def _nothing(told: Diagnosis) -> list[Html | Picture]:
    layers = next((step for step in told.steps if step.suspect == "layers"), None)
    if layers is not None and diagnosis.spread(layers.details):
        said = (
            "The damage is spread evenly. Restoring some of the linears gives back about their share of the loss and no"
            " more, wherever they stand, so no repair of a few places helps: what helps is more bits or better rounding"
            " everywhere."
        )
    elif layers is not None and facts.mapping(layers.details.get("sensitive")):
        said = (
            "Nothing is broken. Some linears are sensitive: restoring them gives back part of the loss, and rounding"
            " them anew in the same format costs as much. What helps is more bits for them."
        )
    else:
        said = (
            "Nothing was found guilty, and that is an answer: every suspect below that could be tested was changed"
            " alone, and none explains the loss on these prompts."
        )
    open_ = [step.suspect for step in told.steps if step.verdict == "unknown"]
    parts: list[Html | Picture] = [tag("p", said, class_="answer")]
    if open_:
        parts.append(paragraph(f"Not decided: {words.listed(open_)}. What is missing stands below."))
    return parts


def _repaired(told: Diagnosis) -> str:
    done = told.prescription
    if done is None or done.after.value is None:
        return "The repair was not applied and measured."
    share = "" if told.share_added is None else f" ({_signed_percent(told.share_added)})"
    cost = "" if told.bytes_added is None else f" for {words.size(told.bytes_added)} more{share}"
    if told.bytes_added == 0:
        cost = ", and it adds no bytes"
    return f"Applied and measured, the loss goes from {_loss(done.before)} to {_loss(done.after)}{cost}."


def _where(told: Diagnosis, of: str) -> list[Section]:
    if told.loss.value is None and not told.categories:
        return []
    prompts = "" if told.prompts is None else f" on {words.count(told.prompts, 'prompt')}"
    tokens = "" if told.tokens is None else f", {told.tokens:,} scored tokens"
    opening = f"The candidate's loss{prompts}{tokens}: {_loss(told.loss)}, measured as {told.axis}."
    control = ""
    if told.control is not None and told.control.loss.value is not None:
        on = "" if told.control.prompts is None else f" ({told.control.prompts:,} prompts)"
        control = f" On the healthy prompts given as control{on} it is {_loss(told.control.loss)}."
    content: list[Html | Picture] = [paragraph(opening, control)]
    groups = [*told.categories, *([told.control] if told.control else [])]
    if any(group.loss.value is not None for group in told.categories):
        caption = "The loss of each category with its 95 % interval, the worst on top; dotted, the loss on all prompts."
        caption += " In grey, the control." if told.control else ""
        figure = diagnosis_figures.losses(told.categories, told.loss.value, told.control, told.axis)
        columns = [Column("prompts of"), Column("number", True), Column(told.axis, True)]
        lines = [[group.name, _count(group.prompts), scores.measured(group.loss)] for group in groups]
        content += [Picture(figure, caption), folded("The numbers", table(columns, lines))]
    return [Section(f"Where the loss is{of}", content)]


def _strip(told: Diagnosis, of: str) -> Section:
    by_name = {step.suspect: step for step in told.steps}
    names = list(dict.fromkeys([*by_name, *diagnosis.SUSPECTS]))
    steps = tag("ol", *(_step(name, by_name.get(name)) for name in names), class_="steps")
    intro = (
        "Five suspects, the cheapest first. Each is cleared or found guilty by an experiment: one thing is changed, and"
        " the loss is measured again on the same prompts. What is found guilty is repaired before the next is examined."
    )
    return Section(f"Suspect by suspect{of}", [paragraph(intro), steps, *_skipped(told)])


def _skipped(told: Diagnosis) -> list[Html]:
    """Who was skipped and why, those with one reason together."""
    reasons: dict[str, list[str]] = {}
    for step in told.steps:
        if step.verdict == "skipped":
            reasons.setdefault(step.evidence, []).append(step.suspect)
    return [
        paragraph(tag("b", words.listed(names).capitalize()), ": ", prose(why or "skipped."))
        for why, names in reasons.items()
    ]


def _step(name: str, step: Step | None) -> Html:
    verdict = step.verdict if step else "absent"
    return tag(
        "li",
        tag("span", _MARKS[verdict], class_="mark", aria_hidden="true"),
        tag("b", words.shortened(name.capitalize(), 24)),
        tag("span", "not examined" if step is None else verdict, class_="word"),
        tag("span", _cost(step, short=True) if step and verdict != "skipped" else "", class_="cost"),
        class_=verdict,
    )


def _suspect(step: Step, told: Diagnosis, of: str) -> Section:
    question = diagnosis.SUSPECTS.get(step.suspect, "")
    content: list[Html | Picture] = []
    if question:
        content.append(paragraph(question, class_="muted"))
    content.append(
        paragraph(tag("b", step.verdict.capitalize(), class_=f"word {step.verdict}"), ". ", prose(step.evidence))
    )
    told_before = {cause.sentence for cause in told.causes}
    content += [paragraph(prose(cause.sentence)) for cause in step.causes if cause.sentence not in told_before]
    content += suspects.details(step, told)
    cost = _cost(step)
    if cost or step.command:
        said = [f"It cost {cost}."] if cost else []
        content.append(paragraph(" ".join([*said, *(["To repeat it:"] if step.command else [])]), class_="muted"))
    if step.command:
        content.append(tag("pre", step.command, class_="commands"))
    return Section(f"{words.shortened(step.suspect.capitalize(), 28)}: {step.verdict}{of}", content)


def _cost(step: Step, short: bool = False) -> str:
    parts = []
    if step.evaluations is not None:
        parts.append(words.count(step.evaluations, "evaluation") if step.evaluations else "no evaluation")
    if step.block_forwards and not short:
        parts.append(f"{diagnosis.forwards(step.block_forwards)} block forwards")
    if step.seconds is not None:
        parts.append(words.duration(step.seconds))
    return ", ".join(parts) if short else words.listed(parts)


def _prescription(told: Diagnosis, of: str) -> list[Section]:
    done = told.prescription
    if done is None:
        return []
    change = (
        None if None in (done.bytes_before, done.bytes_after) else (done.bytes_after or 0) - (done.bytes_before or 0)
    )
    grown = words.DASH if change is None else f"{'+' if change > 0 else ''}{words.size(change)}"
    if change and done.bytes_before:
        grown = join([grown, tag("span", _signed_percent(change / done.bytes_before), class_="interval")])
    columns = [Column(""), Column(told.axis, True), Column("size", True)]
    lines: list[list[Node]] = [
        ["before", scores.measured(done.before), words.size(done.bytes_before)],
        ["after", scores.measured(done.after), words.size(done.bytes_after)],
        ["change", _change(done), grown],
    ]
    content: list[Html | Picture] = [
        paragraph("The repair as a whole, applied to the candidate and measured again on the same prompts."),
        table(columns, lines),
        _recovered(done.recovered),
    ]
    if rows := repairs.stored(told):
        lines = [[code(words.shortened(name, 72)), how] for name, how in rows]
        columns = [Column("linear"), Column("stored")]
        rest = [folded(f"All {len(rows):,}", table(columns, lines[:2000]))] if len(rows) > _FEW_PLACES else []
        content += [tag("h3", "What it stores anew"), table(columns, lines[:_FEW_PLACES]), *rest]
    return [Section(f"The prescription{of}", content)]


def _change(done: diagnosis.Prescription) -> str:
    if done.before.value is None or done.after.value is None or not done.before.value:
        return words.DASH
    return _signed_percent(done.after.value / done.before.value - 1)


def _untested(told: Diagnosis, of: str) -> list[Section]:
    lines = [prose(line) for line in told.untested]
    return [Section(f"What was not tested{of}", [bullets(lines)])] if lines else []


def _count(number: int | None) -> str:
    return words.DASH if number is None else f"{number:,}"


def _loss(value: facts.Measure) -> str:
    ends = words.interval(value.value, value.low, value.high)
    return words.significant(value.value) + (f" ({ends})" if ends else "")


def _signed_percent(value: float) -> str:
    return ("+" if value >= 0 else "−") + words.percent(abs(value))
