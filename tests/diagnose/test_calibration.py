"""Ranges, text and cleared candidates: each fault is planted and seen named, and a healthy candidate is cleared."""

import json
from pathlib import Path

import pytest

from subeight.diagnose.calibration import examine
from subeight.diagnose.clipping import clips_of, static_ranges, with_ranges
from subeight.diagnose.trial import Trial
from tests.diagnose.calibration_case import case_of, copied, quantized, rows, save_base, scale

WINDOWS = "calibration: {source: TEXT, sequences: 8, length: 64, seed: 0}\n"
GPTQ = f"name: small\nweights: int3:g32:sym\nmethods: [gptq]\n{WINDOWS}"
STATIC = f"name: static\nweights: int8:channel:sym\ninputs: int8:tensor\nmethods: [rtn]\n{WINDOWS}"
RTN = "name: plain\nweights: int3:g32:sym\nmethods: [rtn]\n"
DOWN = "model.layers.0.mlp.down_proj"
PROMPTS = [*rows("german", 12, seed=5), *rows("code", 6, seed=6)]
CONTROL = rows("code", 8, seed=7)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("calibration")


@pytest.fixture(scope="module")
def base(folder):
    return save_base(folder)


@pytest.fixture(scope="module")
def on_code(folder, base):
    return quantized(folder, "code", GPTQ, rows("code", 40), base)


@pytest.fixture(scope="module")
def static(folder, base):
    return quantized(folder, "static", STATIC, [*rows("code", 20), *rows("german", 20)], base)


def test_a_category_that_calibration_left_out_is_guilty(folder, base, on_code):
    case = case_of(folder, on_code, base, PROMPTS, CONTROL)
    finding, repaired = examine(case)
    (cause,) = finding.causes
    assert (finding.verdict, cause.kind, cause.places) == ("guilty", "category", ("german",))
    assert cause.recovered.low > 0.4
    assert repaired.loss.value < 0.6 * case.loss.value
    assert repaired.candidate.directory.parent == case.cache
    assert cause.repair["recalibrate"]["checkpoint"] == str(repaired.candidate.directory)
    prescribed = Path(cause.repair["recalibrate"]["source"]).read_text(encoding="utf-8").splitlines()
    assert sum("дороге" in json.loads(line)["text"] for line in prescribed) >= 3
    assert "confined to german" in finding.evidence
    assert finding.details["text"]["scripts_seen"].get("Cyrillic", 0) == 0
    assert json.loads(json.dumps(finding.to_dict(), allow_nan=False))["verdict"] == "guilty"


def test_a_category_that_calibration_held_is_cleared(folder, base):
    both = quantized(folder, "both", GPTQ, [*rows("code", 20), *rows("german", 20)], base)
    finding, after = examine(case := case_of(folder, both, base, PROMPTS, CONTROL))
    assert (finding.verdict, finding.causes, after) == ("cleared", (), case)
    assert finding.details["recalibrated"] is None


def test_damage_after_calibration_is_not_blamed_on_the_text(folder, base, on_code):
    """Making the candidate again repairs a wrong scale too; its own text does so as well, and only the rest counts."""
    damaged = copied(on_code, folder / "damaged")
    scale(damaged, [DOWN, "model.layers.1.mlp.down_proj", "model.layers.1.self_attn.o_proj"], 6.0, "weight_scale")
    finding, _ = examine(case := case_of(folder, damaged, base, rows("german", 12, seed=5)))
    details = finding.details["recalibrated"]
    assert details["own_text"] < 0.8 * case.loss.value
    assert details["recovered"] < 0.7 < 1 - 0.3 * details["own_text"] / case.loss.value


def test_plain_rounding_has_no_calibration(folder, base):
    plain = quantized(folder, "plain", RTN, rows("code", 4), base)
    finding, _ = examine(case_of(folder, plain, base, PROMPTS))
    assert finding.verdict == "cleared"
    assert "without calibration text" in finding.evidence


def test_unknown_calibration_leaves_a_suspicion_undecided(folder, base, on_code):
    alien = copied(on_code, folder / "alien")
    for name in ("record.json", "recipe.yaml"):
        (alien / name).unlink()
    finding, after = examine(case := case_of(folder, alien, base, PROMPTS, CONTROL))
    assert (finding.verdict, after) == ("unknown", case)
    assert "calibration text is unknown" in finding.evidence


def test_the_user_can_say_the_text_of_another_tools_checkpoint(folder, base, on_code):
    alien = copied(on_code, folder / "told")
    for name in ("record.json", "recipe.yaml"):
        (alien / name).unlink()
    text = str(folder / "code-text.jsonl")
    finding, _ = examine(case_of(folder, alien, base, PROMPTS, CONTROL, calibration=text))
    (cause,) = finding.causes
    assert cause.places == ("german",)
    assert "the nearest recipe of ours" in cause.sentence


@pytest.mark.parametrize(
    "names",
    [
        [DOWN],
        ["model.layers.1.self_attn.k_proj"],
        [f"model.layers.1.self_attn.{part}_proj" for part in "qkv"],
        ["model.layers.0.self_attn.o_proj", "model.layers.1.mlp.up_proj"],
    ],
)
def test_narrow_ranges_are_named_and_no_others(folder, base, static, names):
    clipped = copied(static, folder / f"clipped-{len(list(folder.iterdir()))}")
    scale(clipped, names, 0.2, "input_scale")
    finding, repaired = examine(case := case_of(folder, clipped, base, PROMPTS))
    (cause,) = finding.causes
    assert (cause.kind, set(cause.places)) == ("range", set(names))
    assert cause.recovered.low > 0.5
    assert repaired.swaps.inputs == set(names)
    assert repaired.loss.value < 0.4 * case.loss.value
    assert set(cause.repair["ranges"]) == set(names)
    assert finding.details["ranges"][0]["name"] in names


def test_ranges_that_hold_are_cleared(folder, base, static):
    finding, _ = examine(case_of(folder, static, base, PROMPTS))
    assert finding.verdict == "cleared"
    assert "None of the 14 static input ranges" in finding.evidence


def test_a_range_set_anew_is_what_the_block_rounds_with(folder, base, static):
    case = case_of(folder, static, base, PROMPTS)
    changed = with_ranges(case.candidate, {DOWN: 2.0})
    assert float(static_ranges(changed)[DOWN][1].scales) == pytest.approx(2 / 127.5, rel=1e-2)
    clips = {clip.name: clip for clip in clips_of(Trial(case), static_ranges(changed))}
    assert clips[DOWN].rate > 0.001
    assert case.measure(changed).value > 2 * case.loss.value
