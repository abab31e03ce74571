import numpy as np
import pytest
import torch

from subeight.evals import Places, TokenOutcomes
from subeight.evals.contest import best_row, pairs_of
from subeight.evals.scoring import Scored

DOCUMENTS, TOKENS = 40, 20


def _candidate(mean: float, seed: int, common: torch.Tensor) -> Scored:
    generator = torch.Generator().manual_seed(seed)
    kl = (common * mean + 0.01 * torch.rand(len(common), generator=generator, dtype=torch.float64)).clamp_min(0)
    zeros = torch.zeros_like(kl)
    places = Places.of(np.repeat(np.arange(DOCUMENTS), TOKENS))
    return Scored({}, [], TokenOutcomes(zeros, zeros, kl, zeros.bool()), places)


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
