"""A tiny random Llama, its linears, and a way to write it under a recipe."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from subeight.export import ShardWriter, exporter_for
from subeight.formats import Format, QTensor, fake_quantize, quantize
from subeight.formats.scales import Scales
from subeight.models.linear_info import LinearInfo
from subeight.recipes import Plan, parse_recipe, resolve


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny_llama(tie: bool = False, seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=256,
        max_position_embeddings=64,
        tie_word_embeddings=tie,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config).float().eval()


def linears_of(model: torch.nn.Module) -> list[LinearInfo]:
    found = []
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear):
            continue
        block = int(name.split(".")[2]) if ".layers." in name else None
        last, parent = name.rsplit(".", 1)[-1], name.rpartition(".")[0]
        fused = {"q_proj": "q+k+v", "k_proj": "q+k+v", "v_proj": "q+k+v", "gate_proj": "gate+up", "up_proj": "gate+up"}
        group = f"{parent}.{fused.get(last, last)}"
        kind = "head" if block is None else "linear"
        shape = (module.weight.shape[0], module.weight.shape[1])
        found.append(LinearInfo(name, shape, block, group, group if last in fused else None, kind, module.weight.dtype))
    return found


def tiny_mixtral() -> MixtralForCausalLM:
    torch.manual_seed(0)
    config = MixtralConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=128,
        num_local_experts=4,
        num_experts_per_tok=2,
        initializer_range=0.2,
    )
    return MixtralForCausalLM(config).float().eval()


def linears_stored(tensors: dict[str, Tensor]) -> list[LinearInfo]:
    """The linears of a checkpoint by its tensors: experts are stored one by one, whatever the model holds."""
    kinds = {".experts.": "expert", "embed": "embedding", "lm_head": "head", "moe.gate": "router"}
    found = []
    for key, value in tensors.items():
        if value.ndim == 2:
            name = key.removesuffix(".weight")
            kind = next((kind for part, kind in kinds.items() if part in name), "linear")
            block = int(name.split(".")[2]) if ".layers." in name else None
            shape = (value.shape[0], value.shape[1])
            found.append(LinearInfo(name, shape, block, name, None, kind, value.dtype))
    return found


@dataclass
class Written:
    directory: Path
    plan: Plan
    weights: dict[str, QTensor]
    ids: Tensor
    expected: Tensor  # logits of the model as it was measured: dequantized weights, quantized inputs


def _quantized_input(format: Format, scale: Tensor | None) -> Callable:
    def hook(_module: torch.nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        static = Scales(scale.reshape(1, 1), None, None) if scale is not None else None
        return (fake_quantize(args[0], format, static), *args[1:])

    return hook


def write(directory: Path, recipe: str, target: str = "compressed-tensors", tie: bool = False) -> Written:
    """Rounds the tiny model as the recipe says, writes it, and says what it computes."""
    model = tiny_llama(tie)
    config = model.config.to_dict()
    config["architectures"] = ["LlamaForCausalLM"]
    plan = resolve(parse_recipe(recipe), linears_of(model))
    exporter = exporter_for(target)
    exporter.require(plan.sites)
    tied = frozenset({"lm_head.weight"}) if tie else frozenset()
    writer = ShardWriter(directory, exporter, shards=3, tied=tied)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    weights: dict[str, QTensor] = {}
    for site in plan.quantized:
        name = site.linear.name
        weights[name] = quantize(state.pop(f"{name}.weight"), site.weights)
        scale = torch.tensor([0.05]) if site.inputs is not None and site.inputs.per == "tensor" else None
        state |= exporter.tensors(site, weights[name], input_scale=scale)
        module = model.get_submodule(name)
        module.weight.data = exporter.as_loaded(site, weights[name])
        if site.inputs is not None:
            module.register_forward_pre_hook(_quantized_input(site.inputs, scale))
    blocks = [{k: v for k, v in state.items() if f".layers.{i}." in k} for i in range(2)]
    rest = {k: v for k, v in state.items() if ".layers." not in k}
    for index, tensors in enumerate([*blocks, rest]):
        writer.write(index, tensors)
    writer.finish(config, plan.sites)
    ids = torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = model(input_ids=ids, use_cache=False).logits
    return Written(directory, plan, weights, ids, expected)
