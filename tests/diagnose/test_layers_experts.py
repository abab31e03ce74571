"""Experts as places of the layers' examination: one that is broken is named, its healthy siblings are not."""

from pathlib import Path

import pytest

from subeight.diagnose.experts import members
from subeight.diagnose.layers import examine
from subeight.diagnose.sites import Sites
from tests.diagnose.test_layers import Tensors, named
from tests.diagnose.test_layers import case_of as case_of
from tests.probe.mixtures import mixtral as mixtral

EXPERTS = "model.layers.1.block_sparse_moe.experts"


def broken(name: str | None):
    """The routers exact, as every recipe leaves them, and a linear of one expert three times too large."""

    def damage(found: Tensors, exact: Tensors) -> None:
        for key in exact:
            if key.endswith("block_sparse_moe.gate.weight"):
                found[key] = exact[key]
        if name is not None:
            found[f"{name}.weight"] *= 3

    return damage


@pytest.mark.parametrize("number", [0, 3])
def test_a_broken_expert_is_named_and_no_other(case_of, mixtral: Path, number: int) -> None:
    place = f"{EXPERTS}.{number}.w2"
    finding, after = examine(case_of(broken(place), base=mixtral))
    assert finding.verdict == "guilty", finding.evidence
    assert named(finding) == {place}
    assert after.swaps.weights == {place}


def test_evenly_rounded_experts_are_not_accused(case_of, mixtral: Path) -> None:
    finding, _ = examine(case_of(broken(None), base=mixtral))
    assert finding.causes == ()


def test_every_expert_has_places_of_its_own(case_of, mixtral: Path) -> None:
    case = case_of(broken(None), base=mixtral)
    sites = Sites.of(case, case.probe())
    found = members(case.candidate)
    assert len(found) == 2 * 4
    for linears in found.values():
        assert len(linears) == 3 and set(linears) <= set(sites.names)
    assert not any(name.endswith("gate") for name in sites.names)  # routers are the baseline's
