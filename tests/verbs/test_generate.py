import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from subeight import generate
from subeight.errors import InputError
from subeight.kernels.native import native

pytestmark = pytest.mark.usefixtures("no_check")


def test_answers_as_transformers_does(house, made):
    path = str(made("gptq").directory)
    found = generate(path, "hello there", tokens=6, raw=True, options=house.options())
    tokenizer = AutoTokenizer.from_pretrained(path)
    plain = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    ids = torch.tensor([tokenizer("hello there")["input_ids"]])
    wanted = plain.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
    assert found.numbers["text"] == tokenizer.decode(wanted, skip_special_tokens=True)
    assert found.numbers["new_tokens"] == len(wanted) and found.numbers["prompt_tokens"] == ids.shape[1]
    assert sum(found.numbers["kernels"].values()) == 14 and not found.numbers["dense"]
    assert found.directory is None


@pytest.mark.skipif(isinstance(native(), str), reason="no C++ compiler")
def test_compiled_it_answers_the_same(house, made):
    path = str(made("gptq").directory)
    plain, compiled = (
        generate(path, "hello there", tokens=4, raw=True, compiled=compiled, options=house.options())
        for compiled in (False, True)
    )
    assert compiled.numbers["text"] == plain.numbers["text"]
    assert compiled.numbers["longest_step_seconds"] > plain.numbers["longest_step_seconds"]


def test_drawn_answers_depend_on_the_seed_alone(house, made):
    path = str(made("gptq").directory)

    def drawn(seed: int) -> str:
        return generate(path, "hello", tokens=12, temperature=5.0, options=house.options(seed=seed)).numbers["text"]

    assert drawn(1) == drawn(1) != drawn(2)


@pytest.mark.parametrize("prompt, tokens, words", [(" ", 4, "is empty"), ("hello", 10**6, "give a smaller --tokens")])
def test_what_cannot_be_answered(house, prompt, tokens, words):
    with pytest.raises(InputError, match=words):
        generate(str(house.base), prompt, tokens=tokens, options=house.options())
