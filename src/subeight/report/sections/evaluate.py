"""`evaluate`: candidates measured against their baseline, token by token."""

from subeight.records import Record
from subeight.report import experts, facts, scores, words
from subeight.report.markup import Html, Node, code, join
from subeight.report.section import Picture, Section, Tile

ORDER = 20


def summary(records: list[Record]) -> list[Node]:
    """What quantizing did to each candidate."""
    return [join([code(row.label), " was measured. ", scores.sentence_of(row)]) for row in _rows(records)]


def tiles(records: list[Record]) -> list[Tile]:
    """The numbers of the candidate, when there is one."""
    return scores.tiles_of(_rows(records)[0]) if len(records) == 1 else []


def draw(records: list[Record]) -> list[Section]:
    """The scores, the kinds of text, and the tail."""
    rows = _rows(records)
    of = f": {words.shortened(rows[0].label, 28)}" if len(rows) == 1 else ""
    content: list[Html | Picture] = [scores.intro_of(rows), scores.table_of(rows, None)]
    against = Section(f"Against the baseline{of}", content)
    inside = [section for record, row in zip(records, rows, strict=True) for section in _inside(record, row)]
    return [against, *scores.by_text(rows, of), *inside, *scores.tail(rows, of)]


def _inside(record: Record, row: facts.Candidate) -> list[Section]:
    return experts.damage(record.numbers, f": {words.shortened(row.label, 28)}")


def _rows(records: list[Record]) -> list[facts.Candidate]:
    found = []
    for record in records:
        named = facts.text(record.subject.get("label") or record.subject.get("candidate"))
        label = facts.last_part(named) if named else facts.label_of(record)
        costs = {"evaluate_seconds": record.seconds or None, "peak_rss_bytes": record.peak_rss_bytes or None}
        found.append(facts.candidate({**costs, **record.numbers}, label))
    return found
