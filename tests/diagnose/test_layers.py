"""Faults of linears planted in a rounded model: named by experiment, told from sensitivity, or said to be spread."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from subeight.diagnose.case import Case, Settings
from subeight.diagnose.finding import Finding
from subeight.diagnose.layers import examine
from subeight.evals.loss import recovered
from subeight.formats import Format, quantize
from subeight.models.align import align
from subeight.models.model import Model
from tests.probe.mixtures import COMPUTING, question_of, rounded_copy

Tensors = dict[str, torch.Tensor]
DOWN = "model.layers.1.mlp.down_proj"
UP = "model.layers.1.mlp.up_proj"


@pytest.fixture
def case_of(llama: Path, tmp_path: Path) -> Callable[..., Case]:
    """A case whose candidate is the rounded model after `damage`."""

    def make(
        damage: Callable[[Tensors, Tensors], None] = lambda _found, _exact: None, bits: int = 4, base: Path = llama
    ) -> Case:
        other = rounded_copy(base, tmp_path / "other", bits)
        found, exact = load_file(other / "model.safetensors"), load_file(base / "model.safetensors")
        damage(found, exact)
        save_file(found, other / "model.safetensors", metadata={"format": "pt"})
        baseline, candidate = Model(base), Model(other)
        question = question_of(baseline, tmp_path)
        case = Case(
            candidate=candidate,
            baseline=baseline,
            sources=("text",),
            evaluation=question.evaluation,
            question=question,
            computing=COMPUTING,
            cache=tmp_path,
            settings=Settings(),
            whole=None,  # type: ignore[arg-type]
            loss=None,  # type: ignore[arg-type]
            gauge=align(baseline, candidate),
        )
        loss = case.measure(candidate)
        return replace(case, whole=loss, loss=loss)

    return make


def coarse(name: str, bits: int = 2) -> Callable[[Tensors, Tensors], None]:
    def damage(found: Tensors, exact: Tensors) -> None:
        format = Format.parse(f"int{bits}:g32:sym")
        found[f"{name}.weight"] = quantize(exact[f"{name}.weight"], format).dequantize()

    return damage


def named(finding: Finding) -> set[str]:
    return {place for cause in finding.causes for place in cause.places}


def test_one_broken_linear_is_named_and_the_loss_after_its_repair_is_handed_on(case_of) -> None:
    case = case_of(coarse(DOWN))
    finding, after = examine(case)
    assert finding.verdict == "guilty"
    assert named(finding) == {DOWN}
    (cause,) = finding.causes
    assert cause.kind == "codes"
    assert cause.recovered is not None and cause.recovered.value > 0.2
    assert after.swaps.weights == {DOWN}
    share = recovered(case.loss, after.loss).value
    assert share == pytest.approx(cause.recovered.value)
    assert "restoring it recovers" in cause.sentence
    assert finding.evaluations == len(finding.details["tests"]) + 1  # the whole loss


def test_hints_of_forensics_become_the_kind(case_of) -> None:
    case = replace(case_of(coarse(DOWN)), notes={"forensics": {DOWN: "scales"}})
    (cause,) = examine(case)[0].causes
    assert (cause.kind, cause.places) == ("scales", (DOWN,))


def test_a_hint_alone_accuses_nobody(case_of) -> None:
    case = replace(case_of(), notes={"forensics": {DOWN: "scales"}})
    assert named(examine(case)[0]) == set()


@pytest.mark.parametrize("bits", [4, 3])
def test_evenly_rounded_models_have_no_culprit(case_of, bits: int) -> None:
    case = case_of(bits=bits)
    finding, after = examine(case)
    assert finding.verdict == "cleared"
    assert "spread" in finding.evidence or "sensitive" in finding.evidence
    assert after.loss is case.loss
    assert not after.swaps
    assert finding.details["curve"][-1]["recovered"] == 1.0


def test_two_broken_linears_are_both_named(case_of) -> None:
    first, second = coarse(DOWN), coarse("model.layers.0.mlp.down_proj")

    def both(found: Tensors, exact: Tensors) -> None:
        first(found, exact)
        second(found, exact)

    assert named(examine(case_of(both))[0]) == {DOWN, "model.layers.0.mlp.down_proj"}


def test_a_pair_that_hurts_only_together(case_of, llama: Path, tmp_path: Path) -> None:
    def damage(found: Tensors, exact: Tensors) -> None:
        # channel 0 carries nothing: it is silent, and nobody reads it
        found[f"{UP}.weight"][0] = 8 * exact[f"{UP}.weight"][1:5].sum(0)
        found[f"{DOWN}.weight"][:, 0] = 8 * exact[f"{DOWN}.weight"][:, 1:5].sum(1)

    base = Path(shutil.copytree(llama, tmp_path / "base"))
    tensors = load_file(base / "model.safetensors")
    tensors[f"{UP}.weight"][0], tensors[f"{DOWN}.weight"][:, 0] = 0, 0
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    finding, _ = examine(case_of(damage, base=base))
    (cause,) = finding.causes
    assert cause.kind == "pair"
    assert set(cause.places) == {UP, DOWN}


def test_a_quantized_head_is_tried_as_an_exception(case_of) -> None:
    finding, _ = examine(case_of(coarse("lm_head")))
    assert [(cause.kind, cause.places) for cause in finding.causes] == [("format", ("lm_head",))]


def test_the_repair_is_the_cheapest_that_recovers_as_much(case_of) -> None:
    (cause,) = examine(case_of(coarse(DOWN)))[0].causes
    assert set(cause.repair) <= {"weights", "restore", "how"}
    if "weights" in cause.repair:
        assert list(cause.repair["weights"]) == [DOWN]


def test_nothing_lost_and_nothing_aligned(case_of) -> None:
    case = case_of()
    nothing = replace(case, loss=case.loss.minus(case.loss))
    assert examine(nothing)[0].verdict == "cleared"
    assert examine(replace(case, gauge=None))[0].verdict == "skipped"


def test_what_is_repaired_already_is_no_place(case_of) -> None:
    case = case_of(coarse(DOWN))
    _, after = examine(case)
    again, _ = examine(after)
    assert DOWN not in named(again)
