"""Tiny models of the families that are written as GGUF, with a tokenizer, and a rounded one."""

from pathlib import Path

import torch
import transformers as hf

from subeight.models.model import Model
from tests.engine.tiny import quantize
from tests.models.families import COMMON, build, save
from tests.verbs.small import tokenizer

SIZES = {**COMMON, "vocab_size": 352, "max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": 1}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
CONFIGS = {
    "llama": hf.LlamaConfig(**SIZES),
    "tied": hf.LlamaConfig(**SIZES, tie_word_embeddings=True),
    "llama3": hf.LlamaConfig(**SIZES, rope_parameters=LLAMA3),
    "linear": hf.LlamaConfig(**SIZES, rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}),
    "mistral": hf.MistralConfig(**SIZES, sliding_window=None, head_dim=32),
    "qwen2": hf.Qwen2Config(**SIZES),
    "qwen3": hf.Qwen3Config(**SIZES, head_dim=32),
    "gemma2": hf.Gemma2Config(**SIZES, head_dim=32, query_pre_attn_scalar=32, sliding_window=8),
}


def plain(name: str, directory: Path, dtype: torch.dtype = torch.float32) -> Model:
    """The full-precision model of this name."""
    save(build(CONFIGS[name]).to(dtype), directory)
    tokenizer().save_pretrained(directory)
    return Model(directory)


def rounded(name: str, directory: Path, recipe: str) -> Model:
    """The same rounded by a recipe, in our own method."""
    plain(name, directory / "plain")
    quantize(directory / "plain", recipe, directory / "rounded", None, to="subeight")
    return Model(directory / "rounded")
