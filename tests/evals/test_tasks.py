import builtins
import json
from pathlib import Path

import pytest

from subeight.errors import InputError
from subeight.evals import run_tasks
from subeight.evals.tasks import pair_answers

STORIES = Path(__file__).parents[3] / "shared" / "data" / "models" / "stories260K"


def logged(values, metric="acc", chosen="none", prompt="p"):
    return [
        {
            "doc_id": i,
            "doc_hash": f"d{i}",
            "prompt_hash": f"{prompt}{i}",
            "filter": chosen,
            "metrics": [metric],
            metric: value,
        }
        for i, value in enumerate(values)
    ]


def test_answers_are_paired_by_question_in_any_order():
    baseline = {"quiz": logged([1.0, 1.0, 0.0, 0.0, 1.0])}
    candidate = {"quiz": logged([1.0, 0.0, 0.0, 1.0, 0.0])[::-1]}
    got = pair_answers(baseline, candidate)["quiz"]["acc"]
    assert (got["accuracy_baseline"], got["accuracy"]) == (0.6, 0.4)
    assert (got["right_to_wrong"], got["wrong_to_right"], got["n"]) == (2, 1, 5)
    assert got["mcnemar_p"] == got["mcnemar_p_holm"] == 1.0


def test_many_tasks_pay_for_being_many():
    before, after = [1.0] * 8, [0.0] * 8
    got = pair_answers({"a": logged(before), "b": logged(before)}, {"a": logged(after), "b": logged(before)})
    assert got["a"]["acc"]["mcnemar_p"] == 2 / 2**8
    assert got["a"]["acc"]["mcnemar_p_holm"] == 4 / 2**8


def test_graded_metrics_give_a_paired_difference():
    got = pair_answers({"t": logged([0.5, 0.25, 1.0], "f1")}, {"t": logged([0.25, 0.0, 0.75], "f1")})["t"]["f1"]
    assert got["difference"] == pytest.approx(-0.25)
    assert got["difference_ci"] == pytest.approx([-0.25, -0.25])
    assert (got["value"], got["n"]) == (pytest.approx(1 / 3), 3)


def test_filters_are_kept_apart_and_corpus_metrics_left_out():
    samples = logged([1.0, 0.0], chosen="strict") + logged([1.0, 1.0], chosen="flexible")
    got = pair_answers({"gsm": samples}, {"gsm": samples})["gsm"]
    assert {name: numbers["accuracy"] for name, numbers in got.items()} == {"acc,flexible": 1.0, "acc,strict": 0.5}
    corpus = logged([(-3.0, 4), (-2.0, 3)], "word_perplexity")
    assert pair_answers({"text": corpus}, {"text": corpus}) == {"text": {}}


def test_answers_to_different_questions_are_refused():
    with pytest.raises(InputError, match="not to the same questions"):
        pair_answers({"t": logged([1.0])}, {"t": logged([1.0], prompt="another template")})
    with pytest.raises(InputError, match="1 answers of the baseline and 0"):
        pair_answers({"t": logged([1.0])}, {})


def test_missing_package_names_the_extra(monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **named):
        if name.startswith("lm_eval"):
            raise ImportError(f"No module named {name!r}")
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"pip install 'subeight\[tasks\]'"):
        run_tasks("somewhere", "elsewhere", ["quiz"])


@pytest.fixture
def quiz(tmp_path, monkeypatch):
    """A task folder with one task of twelve questions; nothing is fetched."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    names = ["cat", "dog", "girl", "boy", "bird", "bear"]
    rows = [
        {"question": f"There was a little {name}. The {name} was very", "options": ["happy", "under"], "label": i % 2}
        for i, name in enumerate(names * 2)
    ]
    (tmp_path / "quiz.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "quiz.yaml").write_text(
        "task: subeight_quiz\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: '{tmp_path / 'quiz.jsonl'}'}}}}\n"
        "test_split: test\noutput_type: multiple_choice\n"
        "doc_to_text: '{{question}}'\ndoc_to_choice: '{{options}}'\ndoc_to_target: '{{label}}'\n"
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    return tmp_path


@pytest.mark.real
@pytest.mark.filterwarnings("ignore")
def test_a_task_runs_on_both_models(quiz):
    pytest.importorskip("lm_eval", reason="needs subeight[tasks]")
    if not STORIES.is_dir():
        pytest.skip("needs ../shared/data/models/stories260K")
    got = run_tasks(STORIES, STORIES, ["subeight_quiz"], limit=10, task_folder=quiz)["subeight_quiz"]["acc"]
    assert got["n"] == 10
    assert got["accuracy"] == got["accuracy_baseline"] > 0
    assert (got["flips"], got["mcnemar_p"]) == (0.0, 1.0)
    with pytest.raises(InputError, match="'no_such_quiz' was given, which lm-eval does not know"):
        run_tasks(STORIES, STORIES, ["no_such_quiz"], task_folder=quiz)
