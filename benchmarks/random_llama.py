"""A Llama of random weights in bf16, of any width and depth, written block by block; never in memory as a whole.

The bytes follow from the sizes and the seed. Its tokenizer has one token for every byte, so any text can be read.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

SPREAD = 0.02  # standard deviation of a weight


def make_llama(directory: Path, width: int, blocks: int, *, vocabulary: int = 8192, seed: int = 1) -> int:
    """Writes the checkpoint into `directory`, one shard a block, and returns the bytes of its weights.

    Feed-forward layers are 2.75 times as wide as the stream, heads have 64 channels, four of them share keys and
    values; embeddings and head are not tied.
    """
    directory.mkdir(parents=True, exist_ok=True)
    heads = width // 64
    config = LlamaConfig(
        hidden_size=width, intermediate_size=11 * width // 4, num_hidden_layers=blocks, num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 4), vocab_size=vocabulary, tie_word_embeddings=False, dtype="bfloat16",
        architectures=["LlamaForCausalLM"], bos_token_id=256, eos_token_id=257,
    )  # fmt: skip
    config.save_pretrained(directory)
    _tokenizer().save_pretrained(directory)
    total, places = 0, {}
    for index in range(blocks + 1):
        tensors = _outside(config, seed) if index == blocks else _block(config, index, seed)
        name = f"model-{index:05d}.safetensors"
        save_file(tensors, directory / name, {"format": "pt"})
        total += sum(value.nbytes for value in tensors.values())
        places |= dict.fromkeys(tensors, name)
    about = {"metadata": {"total_size": total}, "weight_map": places}
    (directory / "model.safetensors.index.json").write_text(json.dumps(about), encoding="utf-8")
    return total


def _block(config: LlamaConfig, index: int, seed: int) -> dict[str, torch.Tensor]:
    width, ffn = config.hidden_size, config.intermediate_size
    narrow = width * config.num_key_value_heads // config.num_attention_heads
    shapes = {
        "self_attn.q_proj": (width, width), "self_attn.k_proj": (narrow, width), "self_attn.v_proj": (narrow, width),
        "self_attn.o_proj": (width, width), "mlp.gate_proj": (ffn, width), "mlp.up_proj": (ffn, width),
        "mlp.down_proj": (width, ffn),
    }  # fmt: skip
    generator = torch.Generator().manual_seed(100_000 * seed + index)
    prefix = f"model.layers.{index}"
    found = {f"{prefix}.{name}.weight": _random(shape, generator) for name, shape in shapes.items()}
    for norm in ("input_layernorm", "post_attention_layernorm"):
        found[f"{prefix}.{norm}.weight"] = torch.ones(width, dtype=torch.bfloat16)
    return found


def _outside(config: LlamaConfig, seed: int) -> dict[str, torch.Tensor]:
    shape, generator = (config.vocab_size, config.hidden_size), torch.Generator().manual_seed(100_000 * seed - 1)
    return {
        "model.embed_tokens.weight": _random(shape, generator),
        "lm_head.weight": _random(shape, generator),
        "model.norm.weight": torch.ones(config.hidden_size, dtype=torch.bfloat16),
    }


def _random(shape: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    return (torch.randn(shape, generator=generator) * SPREAD).to(torch.bfloat16)


def _tokenizer() -> PreTrainedTokenizerFast:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(letters)} | {"<s>": 256, "</s>": 257}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")
