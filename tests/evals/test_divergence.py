"""Divergences of several candidates at once: float64 definitions, also where they hardly differ or are far apart."""

import pytest
import torch

from subeight.evals.divergence import divergences
from tests.evals.test_tokens import Into, models
from tests.oracles import evals_tokens as oracle


@pytest.mark.parametrize("noise", [1e-5, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0])
def test_they_match_float64_definitions(noise: float) -> None:
    weight, reference, candidate, targets = models(1, 24, 48, 1500, noise)
    head = Into(weight)
    got = divergences(reference, [candidate, reference], [head, head, head], targets)
    logits, shifted = head(reference), head(candidate)
    for i in range(len(targets)):
        kl = oracle.kl(logits[i], shifted[i])
        assert got.kl[0, i].item() == pytest.approx(kl, rel=2e-4, abs=2e-9)
        rise = oracle.nll(shifted[i], targets[i]) - oracle.nll(logits[i], targets[i])
        assert got.nll[0, i].item() == pytest.approx(rise, rel=1e-4, abs=2e-6)
    assert not got.kl[1].any() and not got.nll[1].any()
    assert got.kl.dtype == torch.float64


def test_an_offset_common_to_all_logits_changes_nothing() -> None:
    weight, reference, candidate, targets = models(2, 5, 16, 300, 0.01)

    class Shifted(Into):
        def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
            return super().__call__(hidden) + 7.0

    plain = divergences(reference, [candidate], [Into(weight)] * 2, targets)
    moved = divergences(reference, [candidate], [Into(weight), Shifted(weight)], targets)
    assert torch.allclose(plain.kl, moved.kl, rtol=0.02) and torch.allclose(plain.nll, moved.nll, atol=2e-6)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, reference, candidate, targets = models(3, 40, 16, 300, 0.1)
    heads = [Into(weight)] * 2
    whole = divergences(reference, [candidate], heads, targets)
    monkeypatch.setattr("subeight.evals.divergence._LOGITS", 4 * 300 * 7)
    parts = divergences(reference, [candidate], heads, targets)
    assert torch.allclose(whole.kl, parts.kl, rtol=1e-4)
