"""Random-weight Llamas of any size on disk, written block by block: what scale is measured on.

Each block has a generator of its own, so the same shape and seed give the same bytes, and no more than one block is in
memory. The tokenizer is byte by byte; ids above its 259 are never asked for.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import tokenizers
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

_SPECIAL = ["<s>", "</s>", "<unk>"]


@dataclass(frozen=True)
class Shape:
    """A Llama: heads of 64, a key and value head for every four of them, an MLP of 2.75 times the width."""

    width: int
    blocks: int
    vocabulary: int = 16384

    @property
    def inner(self) -> int:
        """Channels inside the MLP, a multiple of 128."""
        return -(-int(2.75 * self.width) // 128) * 128

    @property
    def keys(self) -> int:
        """Channels of the keys, and of the values."""
        return max(64, self.width // 4)

    @property
    def block_weights(self) -> int:
        """Weights of the linears of one block."""
        return self.width * (2 * self.width + 2 * self.keys + 3 * self.inner)

    @property
    def nbytes(self) -> int:
        """Bytes of the checkpoint in bfloat16, headers left out."""
        norms = self.width * (2 * self.blocks + 1)
        return 2 * (self.blocks * self.block_weights + 2 * self.vocabulary * self.width + norms)


def make_llama(directory: Path, shape: Shape, seed: int = 0) -> Path:
    """Writes the checkpoint in bfloat16, one shard a block; one that is there already is left as it is."""
    if (directory / "model.safetensors.index.json").is_file():
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    _config(shape).save_pretrained(directory)
    _tokenizer().save_pretrained(directory)
    where: dict[str, str] = {}
    for index in range(shape.blocks + 1):
        name = f"model-{index + 1:05d}-of-{shape.blocks + 1:05d}.safetensors"
        generator = torch.Generator().manual_seed(seed * 100_003 + index)
        tensors = _block(shape, index, generator) if index < shape.blocks else _outside(shape, generator)
        save_file(tensors, directory / name, metadata={"format": "pt"})
        where |= dict.fromkeys(tensors, name)
    about = {"metadata": {"total_size": shape.nbytes}, "weight_map": where}
    (directory / "model.safetensors.index.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return directory


def _config(shape: Shape) -> transformers.LlamaConfig:
    return transformers.LlamaConfig(
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.blocks,
        num_attention_heads=shape.width // 64,
        num_key_value_heads=shape.keys // 64,
        vocab_size=shape.vocabulary,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
        bos_token_id=0,
        eos_token_id=1,
    )


def _tokenizer() -> transformers.PreTrainedTokenizerFast:
    letters = [*_SPECIAL, *sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())]
    vocabulary = {letter: number for number, letter in enumerate(letters)}
    model = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=model, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def _block(shape: Shape, index: int, generator: torch.Generator) -> dict[str, Tensor]:
    prefix, width, inner = f"model.layers.{index}", shape.width, shape.inner
    sizes = {
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (shape.keys, width),
        "self_attn.v_proj": (shape.keys, width),
        "self_attn.o_proj": (width, width),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
    }
    found = {f"{prefix}.{name}.weight": _random(size, generator) for name, size in sizes.items()}
    for name in ("input_layernorm", "post_attention_layernorm"):
        found[f"{prefix}.{name}.weight"] = torch.ones(width, dtype=torch.bfloat16)
    return found


def _outside(shape: Shape, generator: torch.Generator) -> dict[str, Tensor]:
    return {
        "model.embed_tokens.weight": _random((shape.vocabulary, shape.width), generator, 1.0),
        "lm_head.weight": _random((shape.vocabulary, shape.width), generator),
        "model.norm.weight": torch.ones(shape.width, dtype=torch.bfloat16),
    }


def _random(size: tuple[int, int], generator: torch.Generator, spread: float | None = None) -> Tensor:
    """Gaussian weights that keep the size of what they read, unless a spread is given."""
    made = torch.empty(size, dtype=torch.float32).normal_(generator=generator)
    return made.mul_(size[1] ** -0.5 if spread is None else spread).to(torch.bfloat16)
