"""A tiny random checkpoint of every family that is tried, and what is in its blocks, as its authors drew them."""

from dataclasses import dataclass
from pathlib import Path

import torch
import transformers as hf
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

COMMON = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 128,
}
MHA = {k: v for k, v in COMMON.items() if k != "num_key_value_heads"}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


@dataclass(frozen=True)
class Family:
    """`groups` in data order, "norm -> linears" or "linears", names without the block's prefix; `folds` alike."""

    config: PreTrainedConfig
    groups: tuple[str, ...]
    folds: tuple[str, ...]
    stages: int = 4
    offset: float = 0.0


def _llama(mlp_norm: str = "post_attention_layernorm") -> tuple[str, ...]:
    return (
        "input_layernorm -> self_attn.q_proj+k_proj+v_proj",
        "self_attn.o_proj",
        f"{mlp_norm} -> mlp.gate_proj+up_proj",
        "mlp.down_proj",
    )


def _llama_folds(mlp_norm: str = "post_attention_layernorm") -> tuple[str, ...]:
    attention, _, mlp, _ = _llama(mlp_norm)
    return (attention, mlp, "self_attn.v_proj -> self_attn.o_proj", "mlp.up_proj -> mlp.down_proj")


def _experts(name: str, up: str, down: str) -> tuple[str, ...]:
    first = tuple(f"post_attention_layernorm -> {name}.experts.{e}.{up}" for e in range(4))
    last = tuple(f"{name}.experts.{e}.{down}" for e in range(4))
    return (*_llama()[:2], *first, f"post_attention_layernorm -> {name}.gate", *last)


def _expert_folds(name: str, linear: str, down: str) -> tuple[str, ...]:
    readers = [group.removeprefix("post_attention_layernorm -> ") for group in _experts(name, "A", "B")[2:7]]
    pair = {"w3": "w1+w3", "up_proj": "gate_proj+up_proj"}[linear]
    norm = "post_attention_layernorm -> " + ", ".join(reader.replace(".A", f".{pair}") for reader in readers)
    experts = (f"{name}.experts.{e}.{linear} -> {name}.experts.{e}.{down}" for e in range(4))
    return (_llama()[0], norm, "self_attn.v_proj -> self_attn.o_proj", *experts)


FAMILIES: dict[str, Family] = {
    "llama": Family(hf.LlamaConfig(**COMMON), _llama(), _llama_folds()),
    "qwen2": Family(hf.Qwen2Config(**COMMON), _llama(), _llama_folds()),
    "qwen3": Family(hf.Qwen3Config(**COMMON, head_dim=16), _llama(), _llama_folds()),
    "gemma2": Family(
        hf.Gemma2Config(**COMMON, head_dim=16),
        _llama("pre_feedforward_layernorm"),
        _llama_folds("pre_feedforward_layernorm"),
        offset=1.0,
    ),
    "gemma3": Family(
        hf.Gemma3TextConfig(**COMMON, head_dim=16, sliding_window=8),
        _llama("pre_feedforward_layernorm"),
        _llama_folds("pre_feedforward_layernorm"),
        offset=1.0,
    ),
    "phi3": Family(
        hf.Phi3Config(**COMMON, pad_token_id=0),
        (
            "input_layernorm -> self_attn.qkv_proj",
            "self_attn.o_proj",
            "post_attention_layernorm -> mlp.gate_up_proj",
            "mlp.down_proj",
        ),
        (
            "input_layernorm -> self_attn.qkv_proj",
            "post_attention_layernorm -> mlp.gate_up_proj",
            "self_attn.qkv_proj -> self_attn.o_proj",
            "mlp.gate_up_proj -> mlp.down_proj",
        ),
    ),
    "gpt2": Family(
        hf.GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=128),
        ("ln_1 -> attn.c_attn", "attn.c_proj", "ln_2 -> mlp.c_fc", "mlp.c_proj"),
        ("ln_1 -> attn.c_attn", "ln_2 -> mlp.c_fc", "attn.c_attn -> attn.c_proj"),
    ),
    "opt": Family(
        hf.OPTConfig(**MHA, ffn_dim=96, word_embed_proj_dim=64),
        (
            "self_attn_layer_norm -> self_attn.q_proj+k_proj+v_proj",
            "self_attn.out_proj",
            "final_layer_norm -> fc1",
            "fc2",
        ),
        (
            "self_attn_layer_norm -> self_attn.q_proj+k_proj+v_proj",
            "final_layer_norm -> fc1",
            "self_attn.v_proj -> self_attn.out_proj",
            "fc1 -> fc2",
        ),
    ),
    "gpt_neox": Family(
        hf.GPTNeoXConfig(**MHA),
        (
            "input_layernorm -> attention.query_key_value",
            "attention.dense",
            "post_attention_layernorm -> mlp.dense_h_to_4h",
            "mlp.dense_4h_to_h",
        ),
        ("input_layernorm -> attention.query_key_value", "post_attention_layernorm -> mlp.dense_h_to_4h"),
    ),
    "mixtral": Family(
        hf.MixtralConfig(**COMMON, num_local_experts=4),
        _experts("block_sparse_moe", "w1+w3", "w2"),
        _expert_folds("block_sparse_moe", "w3", "w2"),
    ),
    "qwen3_moe": Family(
        hf.Qwen3MoeConfig(**COMMON, **MOE, head_dim=16),
        _experts("mlp", "gate_proj+up_proj", "down_proj"),
        _expert_folds("mlp", "up_proj", "down_proj"),
    ),
    "olmo2": Family(
        hf.Olmo2Config(**COMMON),
        ("self_attn.q_proj+k_proj+v_proj", "self_attn.o_proj", "mlp.gate_proj+up_proj", "mlp.down_proj"),
        ("self_attn.v_proj -> self_attn.o_proj", "mlp.up_proj -> mlp.down_proj"),
    ),
}


def build(config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    """Random weights that are large enough for every part to matter, norms and biases included."""
    torch.manual_seed(seed)
    made = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            else:
                parameter.mul_(5)
    return made


def save(made: PreTrainedModel, directory: Path, **options: str) -> Path:
    made.save_pretrained(directory, **options)
    return directory
