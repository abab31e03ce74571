"""A tokenizer as llama.cpp has it: byte-level BPE with the name of its splitting, or SentencePiece with scores.

llama.cpp knows ways of splitting text by name only. A tokenizer is written where its own way is one of these by its
tokenizer.json; any other is refused, since its token ids would differ.
https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp
"""

import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
from transformers import PreTrainedTokenizerBase

from subeight.errors import OutputError

_ENDINGS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_SPLITS = {  # pattern of the split: llama.cpp's name, and whether it looks words up before it merges
    _WORDS + r"\p{N}{1,3}" + _ENDINGS: ("llama-bpe", True),
    _WORDS + r"\p{N}" + _ENDINGS: ("qwen2", False),
}
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_SPACE = "\u2581"


@dataclass(frozen=True)
class Vocabulary:
    """Tokens in the order of their ids, with what llama.cpp wants to know of each."""

    model: str  # "gpt2" or "llama", as llama.cpp calls them
    pre: str
    tokens: list[str]
    types: list[gguf.TokenType]
    scores: list[float] | None = None
    space_prefix: bool | None = None


def require_vocabulary(tokenizer: PreTrainedTokenizerBase, size: int) -> None:
    """Raises OutputError where llama.cpp would cut text into other tokens."""
    vocabulary(tokenizer, size)
    _added(tokenizer)


def write_vocabulary(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase, size: int, config: str) -> None:
    """Writes tokens, merges, special tokens and the chat template; `size` rows has the embedding.

    Raises:
        OutputError: llama.cpp would cut text into other tokens.
    """
    found = vocabulary(tokenizer, size)
    writer.add_tokenizer_model(found.model)
    writer.add_tokenizer_pre(found.pre)
    writer.add_token_list(found.tokens)
    if found.scores is not None:
        writer.add_token_scores(found.scores)
    writer.add_token_types(found.types)
    if found.space_prefix is not None:
        writer.add_add_space_prefix(found.space_prefix)
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer.save_pretrained(scratch)
        Path(scratch, "config.json").write_text(config, encoding="utf-8")
        special = gguf.SpecialVocab(scratch, load_merges=found.model == "gpt2", n_vocab=size)
    special.chat_template = tokenizer.chat_template or None
    special.add_special_token = _added(tokenizer)
    special.add_to_gguf(writer, quiet=True)


def _added(tokenizer: PreTrainedTokenizerBase) -> dict[str, bool]:
    """Whether the tokenizer puts tokens before and after a text: seen, not believed."""
    ids, plain = tokenizer("a").input_ids, tokenizer("a", add_special_tokens=False).input_ids
    place = next((at for at in range(len(ids)) if ids[at : at + len(plain)] == plain), 0)
    before, after = ids[:place], ids[place + len(plain) :]
    if before not in ([], [tokenizer.bos_token_id]) or after not in ([], [tokenizer.eos_token_id]):
        raise OutputError(
            f"This tokenizer puts {before} before and {after} after a text, and llama.cpp puts one token of each at "
            "most; export `--to dense`."
        )
    return {"bos": bool(before), "eos": bool(after)}


def vocabulary(tokenizer: PreTrainedTokenizerBase, size: int) -> Vocabulary:
    """The vocabulary of a tokenizer, filled up to `size` tokens; raises OutputError where llama.cpp has no such."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    if content["model"]["type"] != "BPE":
        raise _refusal(f"is a {content['model']['type']} model")
    tokens, types = _tokens(content, size)
    if content["model"].get("byte_fallback"):
        return _sentencepiece(content, tokens, types)
    return Vocabulary("gpt2", _splitting(content), tokens, types)


def _tokens(content: dict[str, Any], size: int) -> tuple[list[str], list[gguf.TokenType]]:
    by_id = {place: token for token, place in content["model"]["vocab"].items()}
    types = {place: gguf.TokenType.BYTE for place, token in by_id.items() if _BYTE.fullmatch(token)}
    for entry in content["added_tokens"]:
        by_id[entry["id"]] = entry["content"]
        special = entry["special"]
        types[entry["id"]] = gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED
    unknown = content["model"]["vocab"].get(content["model"].get("unk_token"))
    if unknown is not None and content["model"].get("byte_fallback"):
        types[unknown] = gguf.TokenType.UNKNOWN
    if max(by_id) >= size:
        raise OutputError(f"The tokenizer has {max(by_id) + 1} tokens, but the embedding {size} rows; is it another's?")
    tokens = [by_id.get(place, f"[PAD{place}]") for place in range(size)]
    plain = gguf.TokenType.NORMAL
    return tokens, [types.get(at, plain if at in by_id else gguf.TokenType.UNUSED) for at in range(size)]


def _splitting(content: dict[str, Any]) -> str:
    """llama.cpp's name of how this byte-level BPE cuts text into words."""
    normalizer = (content.get("normalizer") or {}).get("type")
    if normalizer not in (None, "NFC"):  # llama.cpp does not normalize; its own converter leaves NFC out too
        raise _refusal(f"normalizes text by {normalizer}")
    steps = content.get("pre_tokenizer") or {"type": "none"}
    steps = steps["pretokenizers"] if steps["type"] == "Sequence" else [steps]
    kinds = [step["type"] for step in steps]
    last = steps[-1]
    if kinds[-1] != "ByteLevel" or last["add_prefix_space"]:
        raise _refusal(f"cuts text by {' and '.join(kinds)}")
    name, whole = None, False
    if last["use_regex"] and len(steps) == 1:
        name = "gpt-2"
    elif last["use_regex"] and kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"]:
        name = "smollm"
    elif not last["use_regex"] and kinds == ["Split", "ByteLevel"] and _isolates(steps[0]):
        name, whole = _SPLITS.get(steps[0]["pattern"].get("Regex"), (None, False))
    if name is None or whole != bool(content["model"].get("ignore_merges")):
        raise _refusal(f"cuts text by {json.dumps(steps)[:200]}")
    return name


def _isolates(split: dict[str, Any]) -> bool:
    return split["behavior"] == "Isolated" and not split["invert"]


def _sentencepiece(content: dict[str, Any], tokens: list[str], types: list[gguf.TokenType]) -> Vocabulary:
    """Scores by the order of merges: llama.cpp joins the pair whose token has the highest score."""
    pairs = [pair if isinstance(pair, list) else pair.split(" ") for pair in content["model"]["merges"]]
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(pairs):
        ranks.setdefault(left + right, rank)
    _require_all_merges(content["model"]["vocab"], {(left, right) for left, right in pairs}, types)
    scores = [-float(ranks.get(token, len(pairs))) for token in tokens]
    return Vocabulary("llama", "default", tokens, types, scores, _space_prefix(content))


def _require_all_merges(known: dict[str, int], merges: set[tuple[str, str]], types: list[gguf.TokenType]) -> None:
    # llama.cpp joins any two tokens that make up a third; this tokenizer only those that its merges name.
    for token, place in known.items():
        if types[place] != gguf.TokenType.NORMAL:
            continue
        for cut in range(1, len(token)):
            pair = token[:cut], token[cut:]
            if pair not in merges and pair[0] in known and pair[1] in known:
                raise _refusal(f"does not merge {pair[0]!r} and {pair[1]!r}, which llama.cpp does by itself")


def _space_prefix(content: dict[str, Any]) -> bool:
    """Whether a space is put before the text; raises where spaces are treated in a way that llama.cpp has not."""
    normalizer, before = content.get("normalizer") or {}, content.get("pre_tokenizer")
    steps = normalizer.get("normalizers", [normalizer] if normalizer else [])
    if before is not None:
        # gemma's splits at spaces that its normalizer has replaced already
        gone = before.get("type") == "Split" and before.get("pattern") == {"String": " "}
        if before.get("type") == "Metaspace" and not steps and before.get("replacement") == _SPACE:
            return bool(before.get("prepend_scheme", "always") != "never")
        if not gone:
            raise _refusal(f"cuts text by {before.get('type')}")
    replaces = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    if steps == [{"type": "Prepend", "prepend": _SPACE}, replaces]:
        return True
    if steps == [replaces]:
        return False
    raise _refusal("normalizes text in a way of its own")


def _refusal(what: str) -> OutputError:
    return OutputError(
        f"The tokenizer {what}, which llama.cpp has no name for, so that its token ids would differ; export "
        "`--to dense`, and use llama.cpp's own converter where it knows this model."
    )
