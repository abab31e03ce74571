from typing import Any

from subeight.advise.kv_findings import findings


def cell(
    weights: str, policy: str, kl: float, ppl: float = 20.0, share: float = 1.0, late: float = 0.0
) -> dict[str, Any]:
    parts = [{"from": 0, "to": 50, "mean": kl}, {"from": 50, "to": 100, "mean": late or kl}]
    spread = 0.05
    return {
        "weights": weights,
        "policy": policy,
        "context": 100,
        "kl": kl,
        "kl_ci": [0.9 * kl, 1.1 * kl],
        "kl_by_place": parts,
        "ppl": ppl,
        "retrieval": {"share": share, "share_ci": [share - spread, share + spread]},
    }


def test_nothing_to_say():
    assert findings([cell("full", "none", 0), cell("full", "int8", 0.001)]) == []


def test_retrieval_that_falls_while_perplexity_does_not():
    rows = [cell("full", "none", 0), cell("full", "int2", 0.001, 20.1, 0.5)]
    assert len(findings(rows)) == 1 and "50% are found in place of 100%" in findings(rows)[0]
    rows[1]["ppl"] = 30.0
    assert findings(rows) == []


def test_retrieval_that_the_full_model_has_not():
    rows = [cell("full", "none", 0, share=0.3), cell("full", "int2", 0.001, share=0.1)]
    assert len(findings(rows)) == 1 and "says nothing about policies" in findings(rows)[0]


def test_loss_that_grows_with_the_place():
    assert (
        "longer contexts will lose more" in findings([cell("full", "none", 0), cell("full", "int2", 0.1, late=0.4)])[0]
    )


def test_weights_and_cache_that_do_not_add_up():
    rows = [cell("full", "none", 0), cell("low", "none", 0.2), cell("full", "int2", 0.1), cell("low", "int2", 0.5)]
    assert "loses 0.5000, more than both apart (0.3000)" in findings(rows)[0]
    rows[-1] = cell("low", "int2", 0.31)
    assert findings(rows) == []
