"""The chapter of a mixture: what calibration gave, what was lost; of records of other versions as much as they say."""

import pytest

from subeight.report import experts
from subeight.report.section import Picture

from .fixtures import HOSTILE


def coverage(blocks=3, count=4, **more):
    rows = [
        {"expert": f"model.layers.{b}.mlp.experts.{e}", "block": b, "tokens": 10 * e * (b + 1), "share": 0.1 * e,
         "weight": 0.25, "tokens_before": 5 * e}
        for b in range(blocks) for e in range(count)
    ]  # fmt: skip
    return {"experts": {"rows": rows, "tokens": 4096, "per_expert": 256, "added": 3, "short": {}, **more}}


def damage():
    numbers = coverage()["experts"]
    for at, row in enumerate(numbers["rows"]):
        row |= {"output_error": 0.01 * (at + 1)}
    numbers["rows"][5]["expert"] = HOSTILE
    routing = [{"block": b, "changed": 0.1 * b, "changed_ci": [0.09 * b, 0.12 * b], "kl": 0.01} for b in range(3)]
    extra = {"routing": routing, "changed": 0.1, "changed_ci": [0.08, 0.13], "worst": HOSTILE, "worst_over_median": 3.2}
    return {"experts": {**numbers, **extra}}


def words_of(sections):
    return "".join(part for section in sections for part in section.content if not isinstance(part, Picture))


def test_coverage_says_what_is_thin_and_what_was_added():
    text = words_of(experts.coverage(coverage()))
    assert "Of 4,096 tokens the least fed of 12 experts gets 0, the middle one 30." in text
    assert "3 sequences were added" in text and "every expert has them" in text
    short = words_of(experts.coverage(coverage(short={"a": 1, "b": 2})))
    assert "2 experts stay under it" in short
    assert "shown all tokens" in words_of(experts.coverage(coverage(forced=True)))


def test_the_heat_map_has_a_square_for_each_expert_at_its_place():
    (section,) = experts.coverage(coverage())
    picture = next(part for part in section.content if isinstance(part, Picture))
    panel = picture.figure.data[0]
    assert len(panel.z) == 4 and len(panel.z[0]) == 3
    assert panel.z[3][2] == max(value for line in panel.z for value in line)
    assert panel.z[0][0] < min(value for line in panel.z[1:] for value in line), "no token is below every other"
    assert "experts.3" in panel.hovertext[3][2] and panel.text[3][2] == "90"


def test_damage_names_the_worst_and_escapes_names():
    sections = experts.damage(damage())
    text = words_of(sections)
    assert "10.0 % of tokens go to another set" in text.replace("10.0%", "10.0 %").replace("10%", "10.0 %")
    assert "3.2" in text and HOSTILE not in text and "&lt;script&gt;" in text
    pictures = [part for part in sections[0].content if isinstance(part, Picture)]
    assert len(pictures) == 2 and list(pictures[0].figure.data[0].y) == pytest.approx([0, 0.1, 0.2])
    assert list(pictures[0].figure.data[0].error_y.array) == pytest.approx([0, 0.02, 0.04])


@pytest.mark.parametrize("numbers", [{}, {"experts": None}, {"experts": {"rows": [{"expert": "x"}]}}])
def test_what_has_no_experts_draws_nothing(numbers):
    assert experts.coverage(numbers) == experts.damage(numbers) == []


def test_a_row_without_numbers_is_a_dash():
    numbers = {"experts": {"rows": [{"expert": "x", "block": 0}]}}
    assert "–" in words_of(experts.coverage(numbers)) or "—" in words_of(experts.coverage(numbers))
    assert experts.damage(numbers)
