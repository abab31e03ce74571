import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from subeight.errors import InputError
from subeight.evals import TokenOutcomes, Workspace, token_outcomes
from subeight.evals import tokens as room
from tests.oracles import evals_tokens as oracle


def models(seed: int, count: int, width: int, vocabulary: int, noise: float):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(vocabulary, width, generator=generator) * 0.5
    reference = torch.randn(count, width, generator=generator)
    candidate = reference + noise * torch.randn(count, width, generator=generator)
    targets = torch.randint(vocabulary, (count,), generator=generator)
    return weight, reference, candidate, targets


class Into:
    """A head that writes into a given buffer."""

    def __init__(self, weight):
        self.weight, self.vocabulary, self.calls = weight, len(weight), 0

    def __call__(self, hidden):
        return hidden.float() @ self.weight.T

    def into(self, hidden, out):
        self.calls += 1
        out.copy_(self(hidden))


def same(a: TokenOutcomes, b: TokenOutcomes) -> bool:
    pairs = zip(vars(a).values(), vars(b).values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("noise", [1e-3, 1e-2, 0.1, 1.0, 10.0])
def test_outcomes_match_float64_definitions(noise):
    weight, reference, candidate, targets = models(1, 24, 48, 1500, noise)

    def head(hidden):
        return hidden @ weight.T

    got = token_outcomes(reference, candidate, head, head, targets)
    logits, shifted = head(reference), head(candidate)
    for i in range(len(targets)):
        assert got.nll_reference[i].item() == pytest.approx(oracle.nll(logits[i], targets[i]), rel=2e-7)
        assert got.nll_candidate[i].item() == pytest.approx(oracle.nll(shifted[i], targets[i]), rel=2e-7)
        assert got.kl[i].item() == pytest.approx(oracle.kl(logits[i], shifted[i]), rel=1e-6, abs=1e-6)
        assert got.agree[i].item() == oracle.agree(logits[i], shifted[i])
    assert got.kl.dtype == torch.float64 and got.agree.dtype == torch.bool


def test_mean_of_tiny_divergences_is_right():
    # an 8-bit model is 1e-4 nats away; single tokens may be off by 1e-7, their mean must not be
    weight, reference, candidate, targets = models(2, 64, 48, 2000, 2e-3)

    def head(hidden):
        return hidden @ weight.T

    got = token_outcomes(reference, candidate, head, head, targets).kl.mean().item()
    expected = sum(oracle.kl(a, b) for a, b in zip(head(reference), head(candidate), strict=True)) / 64
    assert 1e-6 < expected < 1e-3
    assert got == pytest.approx(expected, rel=1e-3, abs=2e-8)


def test_chunks_buffers_and_head_style_change_nothing(monkeypatch):
    weight, reference, candidate, targets = models(3, 37, 16, 300, 0.3)

    def plain(hidden):
        return hidden.float() @ weight.T

    # a product per row, so that only the code under test can depend on how rows are cut
    def rowwise(hidden):
        return torch.stack([row.float() @ weight.T for row in hidden])

    whole = token_outcomes(reference, candidate, rowwise, rowwise, targets)
    monkeypatch.setattr(room, "_CACHE_BYTES", 3 * 4 * 300)
    assert same(whole, token_outcomes(reference, candidate, rowwise, rowwise, targets))
    space = Workspace()
    parts = [
        token_outcomes(
            reference[i : i + 10], candidate[i : i + 10], rowwise, rowwise, targets[i : i + 10], workspace=space
        )
        for i in range(0, 37, 10)
    ]
    assert same(whole, TokenOutcomes.joined(parts))
    head = Into(weight)
    written = token_outcomes(reference, candidate, head, head, targets)
    assert head.calls == 2
    torch.testing.assert_close(written.kl, token_outcomes(reference, candidate, plain, plain, targets).kl)


def test_rows_follow_the_size_of_the_vocabulary():
    assert room._rows(1000, None, True) == 64
    assert room._rows(256, 49152, True) == 256
    assert room._rows(256, 49152, False) == 128
    assert room._rows(1000, 512, True) == 1000
    assert room._rows(300, 262144, False) == 60  # never fewer than 64 at most: five even parts


def test_caller_tensors_stay_untouched():
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    kept = logits.clone()
    got = token_outcomes(logits, logits, lambda x: x, lambda x: x, torch.arange(5))
    assert torch.equal(logits, kept)
    assert got.kl.tolist() == [0.0] * 5
    assert got.nll_reference[2].item() == pytest.approx(oracle.nll(logits[2], 2))


def test_bf16_hidden_states_reach_the_head_as_they_are():
    seen = []

    def head(hidden):
        seen.append(hidden.dtype)
        return hidden.float() @ torch.ones(4, 9)

    token_outcomes(*(torch.ones(3, 4, dtype=torch.bfloat16),) * 2, head, head, torch.zeros(3, dtype=torch.long))
    assert set(seen) == {torch.bfloat16}


@given(
    seed=st.integers(0, 10_000),
    noise=st.floats(0, 5),
    shift=st.floats(-30, 30),
    vocabulary=st.integers(2, 60),
)
@settings(max_examples=60, deadline=None)
def test_divergence_is_a_divergence(seed, noise, shift, vocabulary):
    weight, reference, candidate, targets = models(seed, 6, 8, vocabulary, noise)

    def head(hidden):
        return hidden @ weight.T

    def shifted(hidden):
        return head(hidden) + shift

    order = torch.randperm(vocabulary, generator=torch.Generator().manual_seed(seed))
    place = torch.argsort(order)
    got = token_outcomes(reference, candidate, head, head, targets)
    assert bool((got.kl >= 0).all())
    assert token_outcomes(reference, reference, head, head, targets).kl.abs().max().item() == 0.0
    # a constant added to all logits of one model, and the order of the vocabulary, mean nothing
    moved = token_outcomes(reference, candidate, head, shifted, targets)
    torch.testing.assert_close(moved.kl, got.kl, rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(moved.nll_candidate, got.nll_candidate, rtol=2e-5, atol=2e-5)

    def permuted(hidden):
        return head(hidden)[:, order]

    renamed = token_outcomes(reference, candidate, permuted, permuted, place[targets])
    torch.testing.assert_close(renamed.kl, got.kl, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(renamed.nll_reference, got.nll_reference, rtol=1e-6, atol=1e-6)


def test_certain_models_do_not_overflow():
    reference = torch.tensor([[200.0, 0.0, -300.0], [0.0, 0.0, 0.0]])
    candidate = torch.tensor([[-200.0, 100.0, 0.0], [1e4, 0.0, 0.0]])
    got = token_outcomes(reference, candidate, torch.clone, torch.clone, torch.tensor([0, 1]))
    assert got.kl.tolist() == pytest.approx([300.0, 2e4 / 3 - math.log(3)], rel=1e-6)
    assert got.nll_candidate.tolist() == pytest.approx([300.0, 1e4])


def test_ties_of_the_candidate_count_as_agreement():
    reference = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    candidate = torch.tensor([[2.0, 2.0, 0.0], [2.0, 1.0, 0.0]])
    got = token_outcomes(reference, candidate, torch.clone, torch.clone, torch.tensor([0, 0]))
    assert got.agree.tolist() == [True, False]


@pytest.mark.parametrize(
    ("rows", "targets", "message"),
    [(3, 4, "4 targets were given with 3"), (0, 0, "no tokens")],
)
def test_bad_input_is_one_sentence(rows, targets, message):
    hidden = torch.zeros(rows, 2)
    with pytest.raises(InputError, match=message):
        token_outcomes(hidden, hidden, torch.clone, torch.clone, torch.zeros(targets, dtype=torch.long))


def test_different_vocabularies_are_refused():
    with pytest.raises(InputError, match="share one vocabulary"):
        token_outcomes(
            torch.zeros(2, 4),
            torch.zeros(2, 4),
            torch.clone,
            lambda x: torch.zeros(2, 5),
            torch.zeros(2, dtype=torch.long),
        )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_gives_the_same_outcomes():
    weight, reference, candidate, targets = models(5, 40, 32, 3000, 0.2)
    on_gpu = weight.cuda()
    here = token_outcomes(reference, candidate, lambda x: x @ weight.T, lambda x: x @ weight.T, targets)
    there = token_outcomes(reference.cuda(), candidate.cuda(), lambda x: x @ on_gpu.T, lambda x: x @ on_gpu.T, targets)
    torch.testing.assert_close(there.kl.cpu(), here.kl, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(there.nll_candidate.cpu(), here.nll_candidate, rtol=1e-5, atol=1e-5)
