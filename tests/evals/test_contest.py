import numpy as np
import pytest
import torch

from subeight.evals import Places, TokenOutcomes
from subeight.evals.contest import best_row, categories_of, pairs_of
from subeight.evals.scoring import Scored
from subeight.evals.stats import holm, mcnemar

DOCUMENTS, TOKENS = 40, 20
KINDS = np.where(np.repeat(np.arange(DOCUMENTS), TOKENS) % 2 == 0, "code", "german")


def _candidate(mean: float, seed: int, common: torch.Tensor) -> Scored:
    generator = torch.Generator().manual_seed(seed)
    kl = (common * mean + 0.01 * torch.rand(len(common), generator=generator, dtype=torch.float64)).clamp_min(0)
    zeros = torch.zeros_like(kl)
    places = Places.of(np.repeat(np.arange(DOCUMENTS), TOKENS), category=KINDS.tolist())
    agree = torch.rand(len(common), generator=generator) < 0.9
    return Scored({}, [], TokenOutcomes(zeros, zeros, kl, agree), places)


@pytest.fixture
def common() -> torch.Tensor:
    return torch.rand(DOCUMENTS * TOKENS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _rows(scores: dict[str, Scored], bits: float = 4.25) -> list[dict]:
    return [{"recipe": n, "kl": float(s.outcomes.kl.mean()), "bits_per_weight": bits} for n, s in scores.items()]


def test_pairs_hold_every_two_candidates_and_their_mean_difference(common):
    scores = {name: _candidate(mean, at, common) for at, (name, mean) in enumerate([("a", 1), ("b", 1.1), ("c", 2)])}
    pairs = pairs_of(scores)
    assert [(pair["a"], pair["b"]) for pair in pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    for pair in pairs:
        expected = float((scores[pair["a"]].outcomes.kl - scores[pair["b"]].outcomes.kl).mean())
        low, high = pair["kl_difference_ci"]
        assert pair["kl_difference"] == pytest.approx(expected)
        assert low < expected < high < 0
    assert pairs == pairs_of(scores)


def test_a_candidate_that_is_set_apart_from_all_others_is_named(common):
    scores = {"worse": _candidate(1.1, 1, common), "better": _candidate(1.0, 2, common)}
    best, why = best_row(_rows(scores), pairs_of(scores))
    assert best == "better"
    assert "lowest KL" in why and "of the 2 recipes of its size" in why


def test_no_winner_is_named_where_intervals_overlap(common):
    scores = {"a": _candidate(1.0, 1, common), "b": _candidate(1.0, 2, common), "far": _candidate(3.0, 3, common)}
    rows = _rows(scores)
    best, why = best_row(rows, pairs_of(scores))
    first, second = sorted(rows[:2], key=lambda row: row["kl"])
    assert best is None
    assert why.startswith(f"{first['recipe']} has the lowest KL")
    assert f"cannot be told from {second['recipe']};" in why and "far" not in why


def test_equal_candidates_and_a_missing_interval_name_no_winner(common):
    same = _candidate(1.0, 1, common)
    assert best_row(_rows({"a": same, "b": same}), pairs_of({"a": same, "b": same}))[0] is None
    pairs = [{"a": "a", "b": "b", "kl_difference": -1.0, "kl_difference_ci": None}]
    assert best_row([{"recipe": "a", "kl": 1.0, "bits_per_weight": 4.0}] * 1 + _rows({"b": same}), pairs)[0] is None


def test_one_candidate_alone_is_the_best_of_one(common):
    scores = {"only": _candidate(1.0, 1, common)}
    assert pairs_of(scores) == []
    best, why = best_row(_rows(scores), [])
    assert best == "only" and "only recipe" in why


def test_what_was_not_measured_token_by_token_cannot_win():
    scored = Scored({}, [], None, None)
    assert pairs_of({"a": scored, "b": scored}) == []
    assert best_row([{"recipe": "a", "kl": None, "bits_per_weight": 4.0}], []) == (
        None,
        "Nothing was measured token by token, so no recipe can be called the best.",
    )


def test_p_values_are_corrected_for_as_many_pairs_and_flips_are_counted(common):
    scores = {name: _candidate(mean, at, common) for at, (name, mean) in enumerate([("a", 1), ("b", 1), ("c", 2)])}
    pairs = pairs_of(scores)
    assert [pair["p_holm"] for pair in pairs] == holm([pair["p"] for pair in pairs])
    assert pairs[0]["p_holm"] > 0.05 > max(pairs[1]["p_holm"], pairs[2]["p_holm"])
    first, second = (scores[name].outcomes.agree for name in ("a", "c"))
    assert pairs[1]["only_a"] == int((first & ~second).sum()) and pairs[1]["only_b"] == int((second & ~first).sum())
    assert pairs[1]["flips_p"] == mcnemar(pairs[1]["only_a"], pairs[1]["only_b"])


def test_an_interval_apart_is_not_enough_among_many():
    pair = {"a": "a", "b": "b", "kl_difference": -1.0, "kl_difference_ci": [-2.0, -0.1], "p": 0.03}
    rows = [{"recipe": name, "kl": kl, "bits_per_weight": 4.0} for name, kl in (("a", 1.0), ("b", 2.0))]
    assert best_row(rows, [{**pair, "p_holm": 0.03}])[0] == "a"
    assert best_row(rows, [{**pair, "p_holm": 0.3}])[0] is None


def test_one_may_win_on_code_and_lose_on_german(common):
    coder, german = (_candidate(1.0, seed, common) for seed in (1, 2))
    on_code = torch.from_numpy(KINDS == "code")
    coder.outcomes.kl[~on_code] *= 2
    german.outcomes.kl[on_code] *= 2
    found = categories_of({"coder": coder, "german": german})
    assert {kind: one["best"] for kind, one in found.items()} == {"code": "coder", "german": "german"}
    expected = float(coder.outcomes.kl[on_code].mean())
    assert found["code"]["kl"]["coder"] == pytest.approx(expected)
    same = categories_of({"a": coder, "b": coder})
    assert same["code"]["best"] is None and same["code"]["not_apart"] == ["b"]
    assert categories_of({"alone": coder}) == {}
