"""A served model: healthy ones are cleared in every dialect; a wrong kernel, BOS and template are each named."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import tokenizers
import transformers
from benchmarks import served as bench

from subeight.diagnose import kernels, served
from subeight.diagnose.finding import Finding
from subeight.errors import InputError
from subeight.models.model import Model
from tests.diagnose.packed_case import Pair, make
from tests.diagnose.small_server import serving
from tests.verbs import small

OTHER = "{% for message in messages %}[INST] {{ message['content'] }} [/INST]{% endfor %}"
DIALECTS = {
    "vllm": {},
    "llama-server": {"echo": False, "content": True},
    "llama-cpp-python": {"ids": False, "echo": False},
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make(tmp_path_factory.mktemp("served") / "pair", rows=4)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A pair whose tokenizer begins every text with BOS."""
    made = make(tmp_path_factory.mktemp("served") / "begun", rows=4)
    tokenizer = small.tokenizer()
    template = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.backend_tokenizer.post_processor = template
    tokenizer.save_pretrained(made.base)
    return made


@pytest.fixture(scope="module")
def model(pair: Pair) -> transformers.PreTrainedModel:
    return transformers.AutoModelForCausalLM.from_pretrained(pair.packed, dtype="float32").eval()


def _asked(pair: Pair, model: transformers.PreTrainedModel, **manners: object) -> Finding:
    with serving(model, Model(pair.base).tokenizer(), **manners) as url:
        case = pair.case(served=url)
        return served.examine(case, case.candidate)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_healthy_server_is_cleared_in_every_dialect(pair: Pair, model, dialect: str) -> None:
    finding = _asked(pair, model, **DIALECTS[dialect])
    assert finding.verdict == "cleared", finding.evidence
    assert finding.details["messages"]["distance"]["right"] < 1e-4
    assert ("ids" in finding.details) == (dialect != "llama-cpp-python")
    assert finding.details["text"]["tokens_agree"] is True
    if dialect == "vllm":
        assert finding.details["ids"]["echo"] and finding.details["ids"]["distance"]["right"] < 1e-4


@pytest.mark.parametrize("dialect", DIALECTS)
def test_wrong_logits_are_a_serving_kernel(pair: Pair, model, dialect: str) -> None:
    finding = _asked(pair, model, **DIALECTS[dialect], wrong=0.5)
    assert finding.verdict == "guilty"
    (cause,) = finding.causes
    assert (cause.kind, cause.places) == ("serving", ("server",))
    assert cause.recovered is not None and cause.recovered.value > 0.3 and cause.recovered.low > 0


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_bos_too_many_is_named(pair: Pair, model, dialect: str) -> None:
    (cause,) = _asked(pair, model, **DIALECTS[dialect], bos=1).causes
    assert (cause.kind, cause.places) == ("served_bos", ("tokenizer.bos",))
    assert "one BOS more" in cause.sentence
    assert cause.recovered is not None and cause.recovered.value > 0.9


def test_a_bos_that_is_dropped_is_named(begun: Pair, model) -> None:
    assert _asked(begun, model).verdict == "cleared"
    (cause,) = _asked(begun, model, bos=-1).causes
    assert cause.kind == "served_bos" and "one BOS fewer" in cause.sentence


def test_a_bos_in_front_of_the_rendered_messages_is_named(pair: Pair, model) -> None:
    (cause,) = _asked(pair, model, chat_bos=1).causes
    assert cause.kind == "served_bos" and "a conversation" in cause.sentence


@pytest.mark.parametrize("dialect", DIALECTS)
def test_another_template_is_named(pair: Pair, model, dialect: str) -> None:
    (cause,) = _asked(pair, model, **DIALECTS[dialect], template=OTHER).causes
    assert (cause.kind, cause.places) == ("served_template", ("chat_template",))
    assert cause.recovered is not None and cause.recovered.value > 0.9


def test_a_text_that_is_cut_otherwise_is_named(pair: Pair, model) -> None:
    (cause,) = _asked(pair, model, ids=False, echo=False, words=2).causes
    assert cause.kind == "served_tokenizer"


def test_a_server_without_logprobs_is_unknown_but_its_template_is_counted(pair: Pair, model) -> None:
    finding = _asked(pair, model, logprobs=False)
    assert finding.verdict == "unknown" and "no log-probabilities" in finding.evidence
    (cause,) = _asked(pair, model, logprobs=False, template=OTHER).causes
    assert cause.kind == "served_template" and cause.recovered is None


def test_a_url_where_nothing_answers_is_bad_input(pair: Pair) -> None:
    case = pair.case(served="http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"No server answers at http://127\.0\.0\.1:9"):
        served.examine(case, case.candidate)
    with pytest.raises(InputError, match="give the URL"):
        served.examine(pair.case(served="localhost:8000"), case.candidate)


def test_both_halves_are_one_finding(pair: Pair, model) -> None:
    with serving(model, Model(pair.base).tokenizer(), template=OTHER) as url:
        finding, _ = kernels.examine(pair.case(served=url))
    assert finding.verdict == "guilty" and [cause.kind for cause in finding.causes] == ["served_template"]
    assert "within float noise" in finding.evidence and finding.details["served"]["messages"]["questions"] == 4


@pytest.mark.real
def test_llama_cpp_python_answers_for_real(real_model, tmp_path: Path) -> None:
    python = os.environ.get("LLAMA_CPP_PYTHON") or (sys.executable if find_spec("llama_cpp") else None)
    if python is None:
        pytest.skip("llama-cpp-python is not installed; LLAMA_CPP_PYTHON may name an interpreter that has it")
    real_model("smollm2")
    case = bench.case_of(tmp_path)
    for cell in ("healthy", "template"):
        options, kind = bench.CELLS[cell]
        finding = bench.examined(case, Path(python), options)
        assert [cause.kind for cause in finding.causes] == ([] if kind is None else [kind]), finding.evidence
