"""A tiny random Llama with a tokenizer on disk, texts for it, and recipes that fit it."""

import json
from pathlib import Path

import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.text.conftest import CHATML, CORPUS

# The embeddings are large against the blocks, so that greedy answers are not all one token.
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
GPTQ = """
name: small-gptq
weights: int4:g32:sym
methods: [gptq]
calibration: {source: TEXT, sequences: 8, length: 32, seed: 0}
"""
RTN = "name: small-rtn\nweights: int3:g32:sym\nmethods: [rtn]\n"


def tokenizer(template: str | None = CHATML) -> transformers.PreTrainedTokenizerFast:
    """Byte-level BPE of 320 tokens, trained on a few lines."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    model.train_from_iterator(CORPUS, trainer)
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=model, bos_token="<s>", eos_token="</s>", additional_special_tokens=special[2:]
    )
    made.chat_template = template
    return made


def save_llama(directory: Path, *, seed: int = 0, shards: bool = False, **changed: int) -> Path:
    """Writes the model; `changed` replaces fields of its config, `shards` cuts it in several files."""
    config = transformers.LlamaConfig(**{**SIZES, **changed})
    before = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(config).float().eval()
    torch.random.set_rng_state(before)
    model.save_pretrained(directory, max_shard_size="100KB" if shards else "1GB")
    tokenizer().save_pretrained(directory)
    return directory


def write_text(path: Path, words: int = 600, seed: int = 0) -> Path:
    """Plain text of the tokenizer's own words, in lines."""
    listed = " ".join(CORPUS[:4]).split()
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(listed), (words,), generator=generator).tolist()
    path.write_text(" ".join(listed[index] for index in chosen) + "\n", encoding="utf-8")
    return path


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def text_rows(documents: int, words: int = 24, categories: tuple[str, ...] = ("prose", "code")) -> list[dict]:
    """Documents of different lengths, in turn of the categories."""
    listed = " ".join(CORPUS[:4]).split()
    generator = torch.Generator().manual_seed(7)
    rows = []
    for number in range(documents):
        chosen = torch.randint(len(listed), (words + 3 * (number % 5),), generator=generator).tolist()
        text = " ".join(listed[index] for index in chosen)
        rows.append({"id": f"d{number}", "text": text, "category": categories[number % len(categories)]})
    return rows


def change_tensor(directory: Path, name: str, value: Tensor | None) -> None:
    """Replaces one stored tensor of a checkpoint in one file, or removes it."""
    path = directory / "model.safetensors"
    tensors = load_file(path)
    if value is None:
        del tensors[name]
    else:
        tensors[name] = value
    save_file(tensors, path, metadata={"format": "pt"})


def write_recipe(path: Path, text: str, source: Path | None = None) -> Path:
    path.write_text(text.replace("TEXT", str(source)), encoding="utf-8")
    return path


def tensor(directory: Path, name: str) -> Tensor:
    return load_file(directory / "model.safetensors")[name]
