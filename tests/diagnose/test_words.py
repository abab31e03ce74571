"""The sentences of a diagnosis: the verdict first, numbers as recorded, and no number that has to be there."""

import copy

import pytest

from subeight.diagnose.words import story

CAUSE = {
    "suspect": "layers", "kind": "scales", "places": ["model.layers.3.mlp.down_proj"],
    "sentence": "The scales of model.layers.3.mlp.down_proj are wrong.", "recovered": 0.95, "repair": {},
}  # fmt: skip


def finding(suspect, verdict, evidence=""):
    return {"suspect": suspect, "verdict": verdict, "evidence": evidence}


def numbers(causes=(), **verdict):
    return {
        "metric": "kl", "loss": 0.8473, "loss_ci": [0.745, 0.949], "prompts": 64, "tokens": 3412,
        "categories": {"code": {"loss": 0.2}, "german": {"loss": 1.6}}, "control": {"loss": 0.021},
        "findings": [finding("baseline", "cleared"), finding("stack", "unknown"), finding("kernels", "cleared"),
                     finding("calibration", "skipped"),
                     finding("layers", "guilty" if causes else "cleared", "Spread.")],
        "verdict": {"causes": list(causes), "recovered": 0.951, "recovered_ci": [0.92, 0.98], "bytes_added": 663_552,
                    "bytes": 35_600_000, "recipe": "runs/x/prescription.yaml", **verdict},
        "prescription": {"loss_before": 0.8473, "loss_after": 0.0415, "words": ["pin torch==2.7.0"]},
    }  # fmt: skip


def test_a_culprit_comes_first_with_what_its_repair_brings_and_costs():
    assert story(numbers([CAUSE])) == [
        "Guilty, layers: The scales of model.layers.3.mlp.down_proj are wrong.",
        "Repaired, the loss goes from 0.847 to 0.0415 (95.1 % of it recovered, 92.0 to 98.0 %),"
        " for 664 kB more (+1.9 %).",
        "To do: pin torch==2.7.0.",
        "The repair as a recipe: `runs/x/prescription.yaml`.",
        "As used, it loses 0.847 (0.745 to 0.949) nats per token (KL) on 64 prompts, most in german (1.6);"
        " on the control, 0.021.",
        "Cleared: baseline, kernels.",
        "Not decided: stack.",
        "Not examined: calibration.",
    ]  # fmt: skip


def test_no_culprit_is_an_answer_in_the_words_of_the_layers():
    lines = story(numbers())
    assert lines[0] == "No culprit was found. Spread." and not any("Repaired" in line for line in lines)
    assert "Cleared: baseline, kernels, layers." in lines


@pytest.mark.parametrize("change", [{"loss": 0.0}, {"loss_ci": [-0.01, 0.02]}])
def test_a_loss_that_is_chance_is_no_fault(change):
    assert story(numbers() | change)[0].startswith("Nothing is wrong")


def test_many_causes_are_counted_and_a_cause_without_sentence_is_said():
    bare = {"suspect": "baseline", "kind": "config", "places": [f"config.f{k}" for k in range(6)]}
    lines = story(numbers([bare, *[CAUSE] * 5]))
    assert lines[0] == "Guilty, baseline: config in config.f0, config.f1, config.f2, config.f3 and 2 more."
    assert lines[4] == "And 2 more causes, which the record names."


@pytest.mark.parametrize(
    ("added", "words"), [(0, "no bytes are added"), (-2500, "for 2.5 kB less (-0.0 %)"), (None, "")]
)
def test_the_price(added, words):
    line = story(numbers([CAUSE], bytes_added=added))[1]
    assert line.endswith(f"{words}.") if words else line.endswith("98.0 %).")


@pytest.mark.parametrize("causes", [(), (CAUSE,)])
def test_what_is_missing_is_not_said(causes):
    whole = numbers(causes)
    for key in whole:
        for value in (None, "absent"):
            part = copy.deepcopy(whole)
            if value is None:
                part[key] = None
            else:
                del part[key]
            assert story(part)
    assert story({}) == ["No culprit was found: no suspect that was examined explains the loss."]
    assert "The repair was not applied and measured." in story(numbers([CAUSE], recovered=None))
