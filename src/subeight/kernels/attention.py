"""Attention of one new token on a CPU: torch's fused kernel for it is far slower there than two plain products.

Beside 4,096 tokens, in bf16 and smollm2's shape: 2.3 ms a layer fused, 0.26 ms so (benchmarks/attention).
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

FUSED, NAME = "sdpa", "subeight_sdpa"


def use_plain_products(module: PreTrainedModel) -> None:
    """Has a model on a CPU that attends by torch's fused kernel do so for prompts only."""
    if module.device.type == "cpu" and module.config._attn_implementation == FUSED:
        AttentionInterface.register(NAME, attend)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        module.set_attn_implementation(NAME)


def attend(
    module: nn.Module,
    query: Float[Tensor, "batch heads queries dim"],
    key: Float[Tensor, "batch kv_heads tokens dim"],
    value: Float[Tensor, "batch kv_heads tokens dim"],
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Float[Tensor, "batch queries heads dim"], None]:
    """transformers' interface of attention; softmax is float32. More than one query goes to the fused kernel."""
    batch, heads, queries, dim = query.shape
    rare = any(others.get(name) is not None for name in ("position_bias", "cache", "softcap"))
    if queries > 1 or dropout > 0 or rare:
        found, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **others
        )
        return found, None
    alike = query.reshape(batch, key.shape[1], -1, dim)  # heads that read the same keys are rows of one product
    scores = torch.matmul(alike, key.transpose(-1, -2)).float() * (dim**-0.5 if scaling is None else scaling)
    if attention_mask is not None:
        scores = _masked(scores.reshape(batch, heads, 1, -1), attention_mask).reshape(scores.shape)
    shares = scores.softmax(-1).to(value.dtype)
    return torch.matmul(shares, value).reshape(batch, 1, heads, dim), None


def _masked(scores: Tensor, mask: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        return scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores + mask
