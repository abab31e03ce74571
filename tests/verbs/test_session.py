import pytest

from subeight import Options, evaluate, quantize
from subeight.errors import ModelError
from subeight.verbs import parity
from subeight.verbs.session import Session
from tests.verbs import small

pytestmark = pytest.mark.usefixtures("no_check")


def test_prompts_leave_room_for_answers(house, tmp_path):
    words = small.text_rows(1, words=300)[0]["text"]
    rows = [
        {"messages": [{"role": "user", "content": words}]},
        {"text": words, "choices": ["the mat", "a barn"], "answer": 0},
    ]
    evals = small.write_rows(tmp_path / "evals.jsonl", rows)
    session = Session("evaluate", house.options(evals=(str(evals),)))
    found = session.evaluation(session.model(str(house.base)))
    assert [len(sample.ids) for sample in found.samples] == [128 - 64, 128 - 64]


def test_states_of_another_stack_are_not_taken_for_ours(house, caches, tmp_path):
    stacks = set()
    for dtype in ("float32", "bfloat16"):
        options = house.options(out=tmp_path / dtype, dtype=dtype, eval_tokens=150)
        stack = evaluate(str(house.base), str(house.base), options=options).record.coordinates.stack
        assert list((caches / "references" / stack).glob("*/reference-*.safetensors"))
        stacks.add(stack)
    assert len(stacks) == 2


def test_the_default_directory_is_named_after_the_question(house, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = evaluate(str(house.base), str(house.base), options=house.options(eval_tokens=150))
    same = evaluate(str(house.base), str(house.base), options=house.options(eval_tokens=150))
    other = evaluate(str(house.base), str(house.base), options=house.options(eval_tokens=150, generate=1))
    assert first.directory == same.directory != other.directory
    assert str(first.directory).startswith("runs/evaluate-base-")


def test_an_interrupted_run_is_kept_and_the_same_command_ends_it(house, made, tmp_path, monkeypatch):
    def interrupt(*_args, **_options):
        raise KeyboardInterrupt

    options = house.options(out=tmp_path / "out")
    check = parity.check
    monkeypatch.setattr(parity, "check", interrupt)
    with pytest.raises(KeyboardInterrupt):
        quantize(str(house.base), str(house.gptq), options=options)
    shards = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.safetensors")}
    assert len(shards) == 3
    monkeypatch.setattr(parity, "check", check)
    result = quantize(str(house.base), str(house.gptq), options=options)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.safetensors")} == shards
    assert result.numbers["linears"] == made("gptq").numbers["linears"]


def test_a_finished_run_that_lost_a_shard_is_made_whole_again(house, made, tmp_path):
    options = house.options(out=tmp_path / "out")
    quantize(str(house.base), str(house.rtn), options=options)
    lost = sorted((tmp_path / "out").glob("*.safetensors"))[1]
    before = lost.read_bytes()
    lost.unlink()
    result = quantize(str(house.base), str(house.rtn), options=options)
    assert lost.read_bytes() == before
    assert "3.500 bits per weight" in result.lines[0]


def test_a_directory_that_was_there_and_empty_stays_when_the_input_is_bad(house, tmp_path):
    broken = small.save_llama(tmp_path / "broken")
    small.change_tensor(broken, "model.norm.weight", small.tensor(broken, "model.norm.weight") * float("nan"))
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelError, match=r"model\.norm\.weight"):
        quantize(str(broken), str(house.rtn), options=Options(out=tmp_path / "out", quiet=True))
    assert list((tmp_path / "out").iterdir()) == []


def test_any_package_may_change_what_is_kept(house, monkeypatch):
    kept = Session("evaluate", house.options()).cache
    assert Session("evaluate", house.options()).cache == kept
    monkeypatch.setattr("subeight.verbs.session.distributions", lambda: {"fastsilu": "2"})
    other = Session("evaluate", house.options()).cache
    assert other != kept and other.parent == kept.parent
