"""The loop as one would write it by hand for a Llama: the whole model in memory, forward hooks, nothing streamed.

Slow on purpose: before each InputGroup is rounded the whole model runs again over all calibration text.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from subeight.formats import Format, QTensor
from subeight.methods.base import build
from subeight.models.stats import Stats
from tests.oracles.models_hessian import counted

GROUPS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)


def quantize_by_hand(
    model: LlamaForCausalLM, ids: Tensor, batch: int, format: Format, method: str, tap: str
) -> dict[str, QTensor]:
    """Codes of all linears by name; the model computes with them afterwards."""
    done: dict[str, QTensor] = {}
    layers = range(model.config.num_hidden_layers)
    names = [[f"model.layers.{layer}.{name}" for name in group] for layer in layers for group in GROUPS]
    together = {"sequential": 1, "parallel": len(GROUPS), "exact": len(names)}[tap]
    for start in range(0, len(names), together):
        found = names[start : start + together]
        hessians = [_hessian(model, group[0], ids, batch) for group in found]
        for group, hessian in zip(found, hessians, strict=True):
            done |= _round(model, group, hessian, format, method)
        for name in (name for group in found for name in group):
            model.get_submodule(name).weight.data = done[name].dequantize()
    return done


def _hessian(model: LlamaForCausalLM, name: str, ids: Tensor, batch: int) -> Tensor:
    """2 / sum(c) * X^T diag(c) X of what the linear reads, over the text in batches; every token counts c."""
    module = model.get_submodule(name)
    total, weight = torch.zeros(module.weight.shape[1], module.weight.shape[1]), 0.0

    def hook(_module: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
        nonlocal weight
        x = args[0].reshape(-1, args[0].shape[-1])
        counts = counted(x)
        weight += sum(counts)
        total.addmm_(x.T, torch.tensor(counts)[:, None] * x)

    handle = module.register_forward_pre_hook(hook)
    with torch.no_grad():
        for part in torch.split(ids, batch):
            model(input_ids=part, use_cache=False)
    handle.remove()
    return total.mul_(2 / weight)


def _round(
    model: LlamaForCausalLM, group: Sequence[str], hessian: Tensor, format: Format, method: str
) -> dict[str, QTensor]:
    stats = Stats(1, hessian=hessian)
    made = build(method)
    weights = {name: model.get_submodule(name).weight.data.float() for name in group}
    return {name: made.round(weight, format, stats, torch.Generator()) for name, weight in weights.items()}
