"""What is said of merges, from outcomes that are made up."""

import numpy as np
import pytest

from subeight.train.qlora_measure import Question, Seen
from subeight.train.qlora_verdict import judge

N = 60
SIZES = {"apart": 60, "16-bit": 200, "dequantized": 200, "requantized": 50}


def seen(loss: float, right: int, kl: float = 0.0) -> Seen:
    draw = np.random.default_rng(round(100 * loss) + right)
    documents = np.arange(N).astype(str)
    whole = (np.arange(N) < right).astype(float)
    return Seen(loss + 0.01 * draw.standard_normal(N), np.full(N, kl), documents, whole, documents, np.zeros(0))


def said(answers: bool = True, **ways):
    untrained = {"quantized": seen(3.0, 0), "16-bit": seen(2.9, 1)}
    question = Question(None, [], answers)  # type: ignore[arg-type]  # only asked whether answers can be right
    skipped = {mode: "not known" for mode in SIZES if mode not in ways}
    return judge(ways, untrained, SIZES, {"quantized": 50, "16-bit": 200}, skipped, question, 0)


def test_a_merge_that_erases_is_called_by_name_and_the_smallest_that_keeps_is_best():
    ways = {
        "apart": seen(0.1, 58),
        "16-bit": seen(0.4, 40, 0.3),
        "dequantized": seen(0.1, 58, 0.01),
        "requantized": seen(2.0, 10, 1.5),
    }
    found = said(**ways)
    verdicts = {row["mode"]: row["verdict"] for row in found.rows}
    assert verdicts == {"apart": "kept", "16-bit": "weakened", "dequantized": "kept", "requantized": "erased"}
    assert found.best == "apart" and found.metric == "exact"
    assert any("quantized again loses what was learned: 17% of the gain" in line for line in found.warnings)
    kept = {row["mode"]: row["kept"] for row in found.rows}
    assert kept["16-bit"] == pytest.approx(40 / 58) and kept["requantized"] == pytest.approx(10 / 58)


def test_quantized_again_is_best_where_it_keeps_what_was_learned():
    ways = {"apart": seen(0.1, 58), "requantized": seen(0.1, 57, 0.02)}
    found = said(**ways)
    assert found.best == "requantized" and found.warnings == []
    assert [row.get("skipped") for row in found.rows] == [None, "not known", "not known", None]


def test_text_is_judged_by_its_loss():
    found = said(answers=False, apart=seen(1.0, 0), requantized=seen(2.9, 0, 1.0))
    assert found.metric == "loss" and found.rows[3]["verdict"] == "erased"
    assert found.rows[3]["kept"] == pytest.approx(0.05, abs=0.02)
    assert found.rows[0]["exact"] is None


def test_where_nothing_was_learned_no_merge_is_best():
    found = said(apart=seen(3.0, 0), requantized=seen(3.0, 0))
    assert found.best is None and not found.learned["learned"]
    assert "Nothing was learned" in found.warnings[0]
