"""Moves written out by hand for Llama-like transformers models, and pairs of a baseline and what was made of it."""

import torch

from subeight.formats import Format, quantize
from subeight.models.model import Model
from tests.models.families import FAMILIES, build, save

FORMAT = Format.parse("int4:g32")


def factors(count, seed):
    return torch.exp(0.4 * torch.randn(count, generator=torch.Generator().manual_seed(seed)))


@torch.no_grad()
def move_scales(made):
    """Norm, v/o and up/down scales as a smoothing would leave them, written out by hand for Llama-like models."""
    text = made.config
    repeat = text.num_attention_heads // text.num_key_value_heads
    for index, layer in enumerate(made.model.layers):
        attention, mlp = layer.self_attn, layer.mlp
        s = factors(text.hidden_size, index)
        layer.input_layernorm.weight.div_(s)
        for reader in (attention.q_proj, attention.k_proj, attention.v_proj):
            reader.weight.mul_(s)
        s = factors(text.hidden_size, 10 + index)
        layer.post_attention_layernorm.weight.div_(s)
        for reader in (mlp.gate_proj, mlp.up_proj):
            reader.weight.mul_(s)
        s = factors(attention.v_proj.out_features, 20 + index)
        attention.v_proj.weight.div_(s[:, None])
        if attention.v_proj.bias is not None:
            attention.v_proj.bias.div_(s)
        heads = s.view(text.num_key_value_heads, -1).repeat_interleave(repeat, 0).reshape(-1)
        attention.o_proj.weight.mul_(heads)
        s = factors(mlp.up_proj.out_features, 30 + index)
        mlp.up_proj.weight.div_(s[:, None])
        mlp.down_proj.weight.mul_(s)


@torch.no_grad()
def rotate_by_hand(made, rotation):
    """QuaRot's R1 written out for Llama-like models: norms folded, head untied, readers and writers turned."""
    embedding, head, norm = made.model.embed_tokens, made.lm_head, made.model.norm
    head.weight = torch.nn.Parameter((head.weight * norm.weight) @ rotation)
    embedding.weight = torch.nn.Parameter(embedding.weight @ rotation)
    norm.weight.fill_(1)
    for layer in made.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for owner, readers in (
            (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
        ):
            for reader in readers:
                reader.weight.copy_((reader.weight * owner.weight) @ rotation)
            owner.weight.fill_(1)
        for writer in (attention.o_proj, mlp.down_proj):
            writer.weight.copy_(rotation.T @ writer.weight)
    made.config.tie_word_embeddings = False


@torch.no_grad()
def round_linears(made):
    for module in made.model.layers.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.copy_(quantize(module.weight, FORMAT).dequantize())


def orthogonal(width=64, seed=5):
    return torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(seed)))[0]


def close(got, expected):
    return float((got - expected).norm() / expected.norm()) < 1e-3


def pair(checkpoint, tmp_path, family, change):
    """The baseline, and a candidate made from it by `change`."""
    baseline = Model(checkpoint(family))
    made = build(FAMILIES[family].config)
    change(made)
    return baseline, Model(save(made, tmp_path / "candidate")), made
