"""An expert that calibration never fed is named by what fed it; one that was fed is not, however damaged."""

import json

import pytest

from subeight.diagnose.calibration import examine
from subeight.diagnose.experts import unfed_by_record, unfed_by_text
from subeight.recipes.fallback import UNREACHED
from tests.diagnose.calibration_case import case_of, copied, quantized, rows, save_mixture, scale

GPTQ = (
    "name: mixture\nweights: int4:g32:sym\nmethods: [gptq]\n"
    "calibration: {source: TEXT, sequences: 8, length: 64, seed: 0}\n"
)
EXPERT = "model.layers.0.block_sparse_moe.experts.2"
LINEARS = tuple(f"{EXPERT}.{part}" for part in ("w1", "w2", "w3"))
PROMPTS = [*rows("german", 12, seed=5), *rows("code", 6, seed=6)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("experts")


@pytest.fixture(scope="module")
def base(folder):
    return save_mixture(folder)


@pytest.fixture(scope="module")
def unfed(folder, base):
    """Its text never reaches the expert, whose scales are left far too narrow."""
    made = quantized(folder, "unfed", GPTQ, rows("code", 40), base)
    scale(made, LINEARS, 0.3, "weight_scale")
    return made


def test_an_unfed_expert_is_guilty(folder, base, unfed):
    finding, repaired = examine(case := case_of(folder, unfed, base, PROMPTS))
    cause = next(cause for cause in finding.causes if cause.kind == "expert")
    assert set(cause.places) == set(LINEARS)
    assert cause.recovered.low > 0.1
    assert "1 of 512 tokens" in cause.sentence
    assert repaired.loss.value < 0.8 * case.loss.value
    row = finding.details["experts"][0]
    assert row["expert"] == EXPERT
    assert row["recalibrated"] > 0.5 * row["recovered"]


def test_the_record_knows_it_where_the_text_is_gone(folder, base, unfed):
    lost = copied(unfed, folder / "lost")
    record = json.loads((lost / "record.json").read_text(encoding="utf-8"))
    for row in record["numbers"]["linears"]:
        if row["name"] in LINEARS:  # the router sent it one token of 512 or none, as the last bits fell
            row |= {"notes": {"dead": 64}, "output_error": None}
    (lost / "record.json").write_text(json.dumps(record), encoding="utf-8")
    (folder / "unfed-text.jsonl").rename(folder / "elsewhere.jsonl")
    try:
        finding, _ = examine(case_of(folder, lost, base, PROMPTS))
    finally:
        (folder / "elsewhere.jsonl").rename(folder / "unfed-text.jsonl")
    assert [cause.kind for cause in finding.causes] == ["expert"]
    assert "its record says" in finding.causes[0].sentence


def test_a_damaged_expert_that_was_fed_is_left_to_the_layers(folder, base):
    fed = quantized(folder, "fed", GPTQ, [*rows("code", 20), *rows("german", 20)], base)
    scale(fed, LINEARS, 0.3, "weight_scale")
    finding, _ = examine(case_of(folder, fed, base, PROMPTS))
    assert finding.verdict == "cleared"
    assert finding.details["experts"] == []


def test_a_healthy_unfed_expert_without_a_trace_is_cleared(folder, base, unfed):
    """Without record and text only the codes speak, and plainly rounded they cost little."""
    healthy = quantized(folder, "healthy", GPTQ, [*rows("code", 20), *rows("german", 20)], base)
    for name in ("record.json", "recipe.yaml"):
        (healthy / name).unlink()
    finding, _ = examine(case_of(folder, healthy, base, PROMPTS))
    assert finding.causes == ()
    assert finding.details["experts"] == []


def test_few_tokens_say_nothing_about_an_expert():
    rows = [
        {"expert": "rare", "calibration": 0, "evaluation": 10},
        {"expert": "unfed", "calibration": 1, "evaluation": 200},
        {"expert": "fed", "calibration": 50, "evaluation": 200},
    ]
    assert set(unfed_by_text(rows, {"calibration": 1000, "evaluation": 1000})) == {"unfed"}


def test_a_record_names_linears_that_no_token_reached():
    rows = [
        {"name": "a.experts.0.w1", "notes": {"dead": 64}, "output_error": None},
        {"name": "a.experts.1.w1", "notes": {"dead": 3}, "output_error": 0.1},
        {"name": "a.experts.2.w1", "notes": {}, "output_error": None, "reason": "recipe default"},
        {"name": "a.experts.3.w1", "notes": {}, "output_error": None, "reason": f"recipe default; {UNREACHED}, so"},
    ]
    assert set(unfed_by_record(rows)) == {"a.experts.0", "a.experts.3"}
