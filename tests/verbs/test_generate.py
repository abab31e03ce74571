import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from subeight import generate, quantize
from subeight.errors import InputError
from subeight.kernels.native import native
from subeight.recipes import Plan
from tests.verbs import small

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


def test_the_recipes_policy_of_keys_and_values_is_taken_unless_another_is_asked_for(house, tmp_path):
    recipe = small.write_recipe(tmp_path / "kv.yaml", small.RTN + "kv: int2:g32,window=0,sinks=0\n")
    made = quantize(str(house.base), str(recipe), options=house.options(out=tmp_path / "out"))
    assert any("what they cost is measured by `subeight kv`" in words for words in made.record.warnings)
    assert any("int2:g32:sym" in line for line in Plan.from_dict(made.numbers["plan"]).summary())
    texts = {
        kv: generate(str(tmp_path / "out"), "hello there", tokens=40, raw=True, kv=kv, options=house.options()).numbers
        for kv in (None, "none", "int2:g32,window=0,sinks=0")
    }
    assert texts[None]["kv"] == "int2:g32:sym,window=0,sinks=0" and texts["none"]["kv"] == "none"
    assert texts[None]["text"] == texts["int2:g32,window=0,sinks=0"]["text"] != texts["none"]["text"]
    with pytest.raises(InputError, match="static cache, which cannot hold int2"):
        generate(str(tmp_path / "out"), "hello", tokens=4, compiled=True, options=house.options())


def test_a_policy_for_layers_that_are_not_there_is_refused_before_anything_is_quantized(house, tmp_path):
    recipe = small.write_recipe(tmp_path / "kv.yaml", small.RTN + "kv: int4:g32,7.keys=int8:g32\n")
    with pytest.raises(InputError, match="layer 7 is named"):
        quantize(str(house.base), str(recipe), options=house.options(out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
