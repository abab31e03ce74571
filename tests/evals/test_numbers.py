import json
import math

import numpy as np
import pytest
import torch

from subeight.errors import InputError, SubeightError
from subeight.evals import Places, TokenOutcomes, numbers, sample_rows
from subeight.text import Sample
from tests.oracles import evals_stats as oracle


def outcomes(rng: np.random.Generator, count: int) -> TokenOutcomes:
    reference = rng.exponential(2.0, size=count)
    kl = rng.exponential(0.1, size=count)
    return TokenOutcomes(
        torch.tensor(reference),
        torch.tensor(reference + 0.3 * rng.normal(size=count) + 0.05),
        torch.tensor(kl),
        torch.tensor(kl < 0.2),
    )


def laid_out(documents: int = 40, windows: int = 2, length: int = 25):
    """Places of `documents` documents of `windows` windows each, alternating between two categories."""
    count = documents * windows * length
    sample = np.arange(count) // length
    document = sample // windows
    return Places.of(
        sample,
        [f"page {d}" for d in document],
        ["code" if d % 2 else "prose" for d in document],
        np.arange(count) % length,
    )


def test_fields_are_designs_and_values_are_the_definitions():
    places = laid_out()
    found = outcomes(np.random.default_rng(0), len(places))
    got = numbers(found, places, resamples=200)
    nll = found.nll_candidate.numpy()
    assert got["ppl"] == pytest.approx(math.exp(nll.mean()))
    assert got["ppl_baseline"] == pytest.approx(math.exp(found.nll_reference.mean().item()))
    assert got["ppl_ratio"] == pytest.approx(got["ppl"] / got["ppl_baseline"])
    assert got["kl"] == pytest.approx(found.kl.mean().item())
    assert got["kl_max"] == found.kl.max().item()
    assert got["kl_p99"] == oracle.weighted_quantile(found.kl.tolist(), 0.99)
    assert got["top1"] == pytest.approx(found.agree.double().mean().item())
    assert (got["tokens"], got["samples"], got["documents"]) == (2000, 80, 40)
    for name in ("ppl", "ppl_baseline", "ppl_ratio", "kl", "kl_p99", "top1"):
        low, high = got[f"{name}_ci"]
        assert low <= got[name] <= high
    assert got["choices"] is None and got["generation"] is None
    assert got["warnings"] == ["Fewer than 30 documents or windows in: code, prose; their intervals are rough."]
    assert json.loads(json.dumps(got, allow_nan=False)) == got


def test_intervals_resample_documents():
    places = laid_out()
    found = outcomes(np.random.default_rng(1), len(places))
    got = numbers(found, places, seed=4, resamples=100)
    kl = found.kl.numpy()
    expected = oracle.studentised(kl, np.ones_like(kl), places.document.tolist(), 4, 100)
    assert [got["kl"], *got["kl_ci"]] == pytest.approx(list(expected))
    assert got["ci_method"] == "studentised"


def test_categories_hold_the_same_numbers_of_their_tokens():
    places = laid_out()
    found = outcomes(np.random.default_rng(2), len(places))
    whole = numbers(found, places, resamples=100)
    mask = torch.tensor(places.category == "code")
    part = TokenOutcomes(*(value[mask] for value in vars(found).values()))
    alone = numbers(part, places.only(mask.numpy()), resamples=100)
    inside = whole["categories"]["code"]
    assert set(whole["categories"]) == {"code", "prose"}
    assert inside == {name: alone[name] for name in inside}
    assert inside["ci_method"] == "t"  # 20 documents


def test_positions_are_buckets_that_hold_every_token_once():
    places = laid_out(length=25)
    found = outcomes(np.random.default_rng(3), len(places))
    rows = numbers(found, places, resamples=50)["positions"]
    assert [(row["from"], row["to"]) for row in rows] == [(0, 1), (1, 4), (4, 16), (16, 64)]
    assert sum(row["tokens"] for row in rows) == len(places)
    second = (places.position >= 1) & (places.position < 4)
    assert rows[1]["kl"] == pytest.approx(found.kl.numpy()[second].mean())
    far = Places.of([0, 0], position=[3, 200_000])
    assert numbers(outcomes(np.random.default_rng(0), 2), far)["positions"][-1]["to"] == 200_001


def test_one_document_is_resampled_by_window_and_says_so():
    sample = np.arange(900) // 20
    places = Places.of(sample, ["book"] * 900)
    found = outcomes(np.random.default_rng(4), 900)
    got = numbers(found, places, resamples=50)
    expected = oracle.studentised(found.kl.numpy(), np.ones(900), sample.tolist(), 0, 50)
    assert got["kl_ci"] == pytest.approx(list(expected[1:]))
    assert [w.split(":")[0] for w in got["warnings"]] == ["All text is one document", "Only 900 tokens"]


@pytest.mark.parametrize(
    ("samples", "method", "message"),
    [(1, "none", "no interval can be given"), (12, "t", "Only 12 documents: intervals are t-intervals")],
)
def test_too_little_text_warns(samples, method, message):
    places = Places.of(np.arange(1200) % samples)
    got = numbers(outcomes(np.random.default_rng(5), 1200), places)
    assert got["ci_method"] == method
    assert any(message in warning for warning in got["warnings"])
    assert got["kl_p99_ci"] is None
    assert (got["kl_ci"] is None) == (samples == 1)


def test_t_intervals_stay_within_what_is_possible():
    found = outcomes(np.random.default_rng(6), 300)
    kl = torch.zeros(300)
    kl[0] = 9.0
    got = numbers(TokenOutcomes(found.nll_reference, found.nll_candidate, kl, kl < 1), Places.of(np.arange(300) // 30))
    assert got["kl_ci"][0] == 0.0 and got["top1_ci"][1] == 1.0


def test_identical_models_are_exactly_lossless():
    nll = torch.rand(1200, generator=torch.Generator().manual_seed(0)).double()
    same = TokenOutcomes(nll, nll.clone(), torch.zeros(1200).double(), torch.ones(1200, dtype=torch.bool))
    got = numbers(same, Places.of(np.arange(1200) // 20))
    assert (got["kl"], got["kl_ci"], got["kl_p99"], got["kl_max"]) == (0.0, [0.0, 0.0], 0.0, 0.0)
    assert (got["top1"], got["ppl_ratio"], got["ppl_ratio_ci"]) == (1.0, 1.0, [1.0, 1.0])
    assert got["ppl"] == got["ppl_baseline"]
    assert got["warnings"] == []


def test_other_measures_pass_through():
    got = numbers(
        outcomes(np.random.default_rng(0), 4), Places.of([0, 0, 1, 1]), choices={"n": 3}, generation={"prompts": 2}
    )
    assert got["choices"] == {"n": 3} and got["generation"] == {"prompts": 2}


def test_rows_of_samples_average_to_the_whole():
    places = laid_out(documents=7)
    found = outcomes(np.random.default_rng(7), len(places))
    rows = sample_rows(found, places)
    whole = numbers(found, places)
    assert len(rows) == whole["samples"] == 14
    assert [row["sample"] for row in rows] == list(range(14))
    assert {row["tokens"] for row in rows} == {25}
    assert np.mean([row["kl"] for row in rows]) == pytest.approx(whole["kl"])
    assert max(row["kl_max"] for row in rows) == whole["kl_max"]
    assert math.exp(np.mean([row["nll"] for row in rows])) == pytest.approx(whole["ppl"])
    assert math.exp(np.mean([row["nll_baseline"] for row in rows])) == pytest.approx(whole["ppl_baseline"])
    assert np.mean([row["top1"] for row in rows]) == pytest.approx(whole["top1"])
    assert (rows[3]["document"], rows[3]["category"]) == ("page 1", "code")


def test_places_of_an_evaluation_set():
    samples = [
        Sample((5, 6, 7), (False, True, True), "prose", "a"),
        Sample((5, 6), (False, False), "code", "b"),
        Sample((5, 6, 7, 8), (False, False, False, True), "chat", "c"),
    ]
    places = Places.of_samples(samples)
    assert places.sample.tolist() == [0, 0, 2]
    assert places.document.tolist() == ["a", "a", "c"]
    assert places.category.tolist() == ["prose", "prose", "chat"]
    assert places.position.tolist() == [1, 2, 3]
    assert Places.of([4, 9, 4, 4]).position.tolist() == [0, 0, 1, 2]


@pytest.mark.parametrize(
    ("broken", "whose"), [("nll_reference", "baseline"), ("nll_candidate", "candidate"), ("kl", "candidate")]
)
def test_broken_logits_are_named(broken, whose):
    found = outcomes(np.random.default_rng(0), 6)
    getattr(found, broken)[4] = math.nan
    with pytest.raises(
        SubeightError, match=f"the {whose}'s logits are NaN or infinite for 1 of 6 .* sample 1, position 1"
    ):
        numbers(found, Places.of([0, 0, 0, 1, 1, 1]))


def test_bad_input_is_one_sentence():
    found = outcomes(np.random.default_rng(0), 3)
    with pytest.raises(InputError, match="3 outcomes and 2 places"):
        numbers(found, Places.of([0, 1]))
    empty = TokenOutcomes(*(value[:0] for value in vars(found).values()))
    with pytest.raises(InputError, match="no tokens were scored"):
        sample_rows(empty, Places.of([]))
