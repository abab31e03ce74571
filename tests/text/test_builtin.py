"""The packaged text is disjoint and as long as promised, by the tokenizer of the default model."""

import pytest

from subeight.text import CalibrationSpec, calibrate, compare_coverage, evaluate_set, read_documents
from subeight.text.calibration import _ids_of

WORDS = 12


def words_of(document):
    parts = [document.text] if document.messages is None else [turn["content"] for turn in document.messages]
    return " ".join(part for part in parts if part).split()


def runs(documents):
    """Every run of twelve words in a row."""
    return {
        tuple(words[at : at + WORDS])
        for words in map(words_of, documents)
        for at in range(max(len(words) - WORDS + 1, 0))
    }


def test_calibration_and_evaluation_share_no_run_of_words():
    calibration, evaluation = (runs(read_documents("builtin", part)) for part in ("calibration", "evaluation"))
    assert len(calibration) > 5000 and len(evaluation) > 5000
    assert not calibration & evaluation


@pytest.mark.real
def test_lengths_by_the_default_tokenizer(smollm2):
    def count(part):
        return sum(len(_ids_of(document, smollm2)) for document in read_documents("builtin", part))

    assert count("calibration") >= 17_000
    assert count("evaluation") >= 12_000


@pytest.mark.real
def test_the_defaults_work_and_cover_each_other(smollm2):
    calibration = calibrate(CalibrationSpec(), smollm2)
    assert calibration.ids.shape == (32, 512)
    assert {calibration.categories.count(name) for name in calibration.categories} == {8}
    whole = evaluate_set("builtin", smollm2)
    demo = evaluate_set("builtin", smollm2, tokens=4096)
    assert 4000 < demo.tokens <= 4096 and whole.tokens >= 12_000
    assert demo.samples[:-1] == whole.samples[: len(demo.samples) - 1]
    assert {sample.category for sample in demo.samples} == {"prose", "code", "german", "chat"}
    found = compare_coverage(calibration.ids.tolist(), [sample.ids for sample in whole.samples], smollm2)
    assert found.warnings == []
