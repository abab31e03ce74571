"""Probes tell the same bits, another rounding and a wrong result apart."""

import pytest
import torch
from torch.nn import functional as F

from subeight.evals.passes import Computing
from subeight.formats import packing
from subeight.lock import probes
from subeight.lock.probes import compare_probes, integers, probe_kernels
from subeight.models.model import Model
from tests.verbs import small


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return Model(small.save_llama(tmp_path_factory.mktemp("probes") / "base"))


def _run(model, dtype=torch.float32):
    return [probe.to_dict() for probe in probe_kernels(model, model, Computing(dtype, torch.device("cpu"), quiet=True))]


def test_inputs_are_the_same_numbers_everywhere():
    assert integers(3, 2, 3).tolist() == [
        [0.00048828125, 0.142578125, 0.23046875],
        [0.017822265625, 0.9375, 0.111328125],
    ]
    wide = integers(0, 1000)
    assert torch.equal(wide.to(torch.bfloat16).double(), wide)
    assert -1 <= float(wide.min()) < -0.5 and 0.5 < float(wide.max()) < 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_twice_is_the_same_and_near_float64(model, dtype):
    first, second = _run(model, dtype), _run(model, dtype)
    assert first == second
    assert {row["relation"] for row in compare_probes(first, second)} == {"same"}
    assert all(0 <= probe["error"] <= probe["bound"] for probe in first)


def test_another_order_of_sums_is_rounding(model, monkeypatch):
    before = _run(model)
    real = F.linear

    def halves(x, weight, bias=None):
        middle = x.shape[-1] // 3
        return real(x[..., :middle], weight[:, :middle]) + real(x[..., middle:], weight[:, middle:])

    monkeypatch.setattr(probes.F, "linear", halves)
    found = {row["name"]: row["relation"] for row in compare_probes(before, _run(model))}
    assert {found[name] for name in found if name.startswith("linear")} == {"rounding"}
    assert {found[name] for name in found if not name.startswith("linear")} == {"same"}


def test_products_in_bfloat16_are_wrong_for_float32(model, monkeypatch):
    before = _run(model)
    real = F.linear
    monkeypatch.setattr(probes.F, "linear", lambda x, w, bias=None: real(x.bfloat16(), w.bfloat16()).float())
    found = {row["name"]: row["relation"] for row in compare_probes(before, _run(model))}
    assert {found[name] for name in found if name.startswith("linear")} == {"wrong"}


def test_a_wrong_unpacking_is_wrong(model, monkeypatch):
    from subeight.formats import Format

    device = torch.device("cpu")
    for text in ("int4:g32:sym", "int3:g32:asym", "int8:channel:sym", "int4:tensor:sym"):
        for probe in probes._codes(Format.parse(text), 0, device):
            assert probe.error <= probe.bound, probe.name
    monkeypatch.setattr(probes, "unpack", lambda *a: packing.unpack(*a).roll(1, -1))
    (first, *_) = probes._codes(Format.parse("int4:g32:sym"), 0, device)
    assert first.error > first.bound


def test_a_probe_of_one_side_only_is_missing(model):
    found = _run(model)
    relations = [row["relation"] for row in compare_probes(found[1:], found[:-1])]
    assert sorted(set(relations)) == ["missing", "same"] and relations.count("missing") == 2
