"""Tokenizers as llama.cpp has them: named where it knows their way of cutting text, refused by that way elsewhere."""

import gguf
import pytest
import tokenizers
import transformers as hf
from tokenizers import Regex, decoders, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from subeight.errors import OutputError
from subeight.export.gguf_vocabulary import require_vocabulary, vocabulary
from tests.text.conftest import CORPUS
from tests.verbs.small import tokenizer

# As the tokenizer.json of these families has them.
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3, QWEN2 = WORDS + "{1,3}" + REST, WORDS + REST


def byte_level(before: pre_tokenizers.PreTokenizer, whole: bool = False) -> hf.PreTrainedTokenizerFast:
    made = tokenizer()
    made.backend_tokenizer.pre_tokenizer = before
    made.backend_tokenizer.model.ignore_merges = whole
    return made


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), last])


DIGITS = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
)


@pytest.mark.parametrize(
    ("before", "whole", "name"),
    [
        (pre_tokenizers.ByteLevel(add_prefix_space=False), False, "gpt-2"),
        (DIGITS, False, "smollm"),
        (split(LLAMA3), True, "llama-bpe"),
        (split(QWEN2), False, "qwen2"),
    ],
)
def test_ways_of_cutting_text_by_their_names(before, whole: bool, name: str) -> None:
    found = vocabulary(byte_level(before, whole), 330)
    assert (found.model, found.pre, len(found.tokens)) == ("gpt2", name, 330)
    assert found.types[:4] == [gguf.TokenType.CONTROL] * 4
    assert found.types[319:321] == [gguf.TokenType.NORMAL, gguf.TokenType.UNUSED]
    assert found.tokens[2:4] == ["<|im_start|>", "<|im_end|>"]


@pytest.mark.parametrize(
    ("before", "whole", "words"),
    [
        (split(LLAMA3), False, "cuts text by"),  # the same pattern, but merges where llama.cpp looks up
        (split(r"\p{L}+"), False, "cuts text by"),
        (pre_tokenizers.ByteLevel(add_prefix_space=True), False, "cuts text by ByteLevel"),
        (pre_tokenizers.Whitespace(), False, "cuts text by Whitespace"),
    ],
)
def test_another_way_is_refused(before, whole: bool, words: str) -> None:
    with pytest.raises(OutputError, match=f"{words}.*no name for.*--to dense"):
        vocabulary(byte_level(before, whole), 320)


def test_a_normalizer_is_refused() -> None:
    made = tokenizer()
    made.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(OutputError, match="normalizes text by Lowercase"):
        vocabulary(made, 320)


def test_more_tokens_than_rows() -> None:
    with pytest.raises(OutputError, match="320 tokens, but the embedding 100 rows"):
        vocabulary(tokenizer(), 100)


def test_two_tokens_before_a_text_are_refused() -> None:
    made = tokenizer()
    made.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> <|im_start|> $A", special_tokens=[("<s>", 0), ("<|im_start|>", 2)]
    )
    with pytest.raises(OutputError, match=r"puts \[0, 2\] before"):
        require_vocabulary(made, 320)


def sentencepiece() -> hf.PreTrainedTokenizerFast:
    """As transformers converts SentencePiece's BPE: words begin with a mark, unknown bytes fall back."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    model.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    model.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=340, special_tokens=special[:3], show_progress=False)
    model.train_from_iterator(CORPUS, trainer)
    return hf.PreTrainedTokenizerFast(tokenizer_object=model, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def test_merges_that_llama_cpp_would_make_by_itself() -> None:
    # the trainer's merges are some of the pairs; SentencePiece's are all of them
    with pytest.raises(OutputError, match=r"does not merge .*, which llama\.cpp does by itself"):
        vocabulary(sentencepiece(), 340)


@pytest.mark.real
def test_scores_put_merges_in_their_order(real_model) -> None:
    found = vocabulary(AutoTokenizer.from_pretrained(real_model("stories260K")), 512)
    assert (found.model, found.space_prefix) == ("llama", True)
    assert found.types[:4] == [gguf.TokenType.UNKNOWN, *[gguf.TokenType.CONTROL] * 2, gguf.TokenType.BYTE]
    assert found.scores is not None
    scores = dict(zip(found.tokens, found.scores, strict=True))
    assert scores["\u2581t"] > scores["he"] > scores["\u2581a"]
