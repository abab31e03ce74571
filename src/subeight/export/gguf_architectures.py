"""What llama.cpp must be told of a model besides its tensors: one row of facts for each family that is written.

Keys are those of llama.cpp's own converter; the names of tensors are the gguf package's.
https://github.com/ggml-org/llama.cpp/blob/master/convert_hf_to_gguf.py
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from subeight.errors import OutputError

Array = npt.NDArray[Any]
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu"}


@dataclass(frozen=True)
class Family:
    """One of transformers' model types as llama.cpp knows it.

    `rotated`: it turns neighbours in q and k where transformers turns halves, so their rows are put in another order.
    `offset`: its norms are stored with 1 added. `rope`: the kinds of rotary embedding that it is written with.
    """

    architecture: gguf.MODEL_ARCH
    activation: str = "silu"
    rotated: bool = False
    offset: bool = False
    biases: tuple[str, ...] = ()  # the linears that may have one
    rope: tuple[str, ...] = ("default", "linear")
    more: Callable[[gguf.GGUFWriter, PreTrainedConfig], None] | None = None


def _windows(writer: gguf.GGUFWriter, config: PreTrainedConfig) -> None:
    writer.add_sliding_window(config.sliding_window)
    if getattr(config, "attn_logit_softcapping", None):
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    if getattr(config, "final_logit_softcapping", None):
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


_LLAMA = Family(gguf.MODEL_ARCH.LLAMA, rotated=True, rope=("default", "linear", "llama3"))
_QKV = ("q_proj", "k_proj", "v_proj")
FAMILIES: dict[str, Family] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": Family(gguf.MODEL_ARCH.QWEN2, biases=_QKV),
    "qwen3": Family(gguf.MODEL_ARCH.QWEN3),
    "gemma2": Family(gguf.MODEL_ARCH.GEMMA2, activation="gelu", offset=True, rope=("default",), more=_windows),
}


def family_of(config: PreTrainedConfig, parameters: list[str]) -> Family:
    """The family of a model; raises OutputError, with the reason, for what llama.cpp would compute otherwise."""
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise OutputError(
            f"Models of the type {config.model_type} are not written as GGUF; {', '.join(FAMILIES)} are: export "
            "`--to compressed-tensors` or `--to dense`, and let llama.cpp's own converter read the latter."
        )
    reason = _unsayable(config, family, parameters)
    if reason is not None:
        raise OutputError(f"This {config.model_type} cannot be written as GGUF: {reason}; export `--to dense`.")
    return family


def _unsayable(config: PreTrainedConfig, family: Family, parameters: list[str]) -> str | None:
    activation = getattr(config, "hidden_act", None) or getattr(config, "hidden_activation", None)
    if _ACTIVATIONS.get(str(activation)) != family.activation:
        return f"its activation is {activation}, and llama.cpp computes {family.activation} there"
    kind = _rope(config)["rope_type"]
    if kind not in family.rope:
        return f"its rotary embedding is of the type {kind}, and only {', '.join(family.rope)} are written"
    if float(_rope(config).get("partial_rotary_factor") or 1) != 1:
        return "it rotates a part of each head"
    window = getattr(config, "sliding_window", None)
    if window and family.more is not _windows and window < config.max_position_embeddings:
        kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
        if "sliding_attention" in kinds:
            return f"its attention sees {window} positions back, which llama.cpp does not know of this family"
    if family.more is _windows and list(config.layer_types) != _alternating(config.num_hidden_layers):
        return "its layers do not alternate between near and full attention"
    large = config.num_hidden_layers == 46  # of gemma2; llama.cpp scales its queries by another width
    scaled = config.hidden_size // config.num_attention_heads if large else head_width(config)
    if family.more is _windows and config.query_pre_attn_scalar != scaled:
        return "its queries are scaled by something else than the width of a head"
    biased = [name for name in parameters if name.endswith(".bias") and name.split(".")[-2] not in family.biases]
    return f"{biased[0]} is a bias that the file has no place for" if biased else None


def _alternating(layers: int) -> list[str]:
    return ["sliding_attention" if layer % 2 == 0 else "full_attention" for layer in range(layers)]


def _rope(config: PreTrainedConfig) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10000.0, **(config.rope_parameters or {})}


def head_width(config: PreTrainedConfig) -> int:
    """Channels of one attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def describe(writer: gguf.GGUFWriter, config: PreTrainedConfig, family: Family) -> None:
    """Writes the sizes and constants of the architecture."""
    rope, width = _rope(config), head_width(config)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if family.more is not None:
        family.more(writer, config)


def extra_tensors(config: PreTrainedConfig) -> dict[str, Array]:
    """Tensors that no parameter holds: how much slower each pair of channels turns (Llama 3.1)."""
    if _rope(config)["rope_type"] != "llama3":
        return {}
    plain, width = float(_rope(config)["rope_theta"]), head_width(config)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    ideal = 1.0 / plain ** (torch.arange(0, width, 2, dtype=torch.int64).float() / width)
    return {"rope_freqs.weight": (ideal / scaled).numpy().astype(np.float32)}


def laid_out(name: str, rows: Array, config: PreTrainedConfig, family: Family) -> Array:
    """The rows of a parameter (numbers, or the bytes of their blocks) as llama.cpp has them."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2], 0)
    if family.rotated and heads:
        return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
    if family.offset and name.endswith("norm.weight"):
        return rows + 1
    return rows
