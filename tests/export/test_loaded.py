"""What plain transformers computes of every kind of checkpoint that we write: all of them in one fresh process."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import MixtralForCausalLM
from transformers.core_model_loading import revert_weight_conversion

from subeight.export import ShardWriter, exporter_for
from subeight.export.packed import Checkpoint, PackedRunner
from subeight.formats import quantize
from subeight.recipes import parse_recipe, resolve
from tests.export.conftest import linears_stored, tiny_mixtral, write

LLAMA = {
    "int4": "weights: int4:g64",
    "int3": "weights: int3:g32:fp32",
    "int2": "weights: int2:g64",
    "int8": "weights: int8:channel",
    "int5 in one scale": "weights: int5:tensor:asym",
    "packed zero points": "weights: int3:g32:asym",
    "w8a8": "weights: int8:channel\ninputs: int8:token",
    "w8a8 affine": "weights: int8:channel:asym\ninputs: int8:token:asym",
    "w8a8 static": "weights: int8:channel\ninputs: int8:tensor",
    "w4a8": "weights: int4:g64\ninputs: int8:token",
    "w4a8 float": "weights: int4:g64\ninputs: fp8:token",
    "fp8": "weights: fp8\ninputs: fp8:token",
    "fp8 weights": "weights: fp8:tensor",
    "tied": "weights: int4:g64",
    "dense": "weights: nf4:g40",
    "mixed": (
        "weights: int4:g64\nrules:\n  - {match: '*.down_proj', weights: int8:g64}\n"
        "  - {match: '*.1.*.q_proj', keep: true}\n  - {match: '*.0.*.o_proj', weights: fp8}\n"
        "  - {match: lm_head, weights: 'int6:channel'}\n"
    ),
}
MIXTRAL = {
    "experts": "weights: int4:g32",
    "experts and attention": "weights: int3:g32\nrules: [{match: '*.self_attn.*', weights: int8:g32}]",
    "experts alone": "weights: int4:g32\nrules: [{match: '*.self_attn.*', keep: true}]",
    "experts in fp8": "weights: fp8",
}


def write_mixtral(directory: Path, recipe: str) -> tuple[Tensor, Tensor]:
    model = tiny_mixtral()
    config = {**model.config.to_dict(), "architectures": ["MixtralForCausalLM"]}
    stored = {name: value.contiguous() for name, value in revert_weight_conversion(model, model.state_dict()).items()}
    plan = resolve(parse_recipe(recipe), linears_stored(stored))
    exporter = exporter_for("compressed-tensors")
    exporter.require(plan.sites)
    written, dense = dict(stored), dict(stored)
    for site in plan.quantized:
        name = f"{site.linear.name}.weight"
        weight = quantize(written.pop(name), site.weights)
        dense[name] = exporter.as_loaded(site, weight)
        written |= exporter.tensors(site, weight)
    writer = ShardWriter(directory, exporter, 1)
    writer.write(0, written)
    writer.finish(config, plan.sites)
    plain = ShardWriter(directory.with_name(f"{directory.name} plain"), exporter_for("dense"), 1)
    plain.write(0, dense)
    plain.finish(config, ())
    ids = torch.arange(48).reshape(2, 24)
    with torch.inference_mode():
        measured = MixtralForCausalLM.from_pretrained(plain.directory, dtype=torch.float32).eval()
        return ids, measured(input_ids=ids, use_cache=False).logits


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tensor, Tensor]]:
    """Per kind of checkpoint: the logits that were measured and those of plain transformers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("loaded")
    expected: dict[str, Tensor] = {}
    asked: dict[str, Tensor] = {}
    for name in (*LLAMA, *MIXTRAL):
        directory = root / name
        if name in MIXTRAL:
            asked[name], expected[name] = write_mixtral(directory, MIXTRAL[name])
        else:
            target = "dense" if name == "dense" else "compressed-tensors"
            written = write(directory, LLAMA[name], target, tie=name == "tied")
            asked[name], expected[name] = written.ids, written.expected
    torch.set_num_threads(threads)
    found = {}
    with PackedRunner(isolated=True) as runner:
        for name, ids in asked.items():
            report = runner.load(Checkpoint(root / name), threads=1)
            assert not any(report.values()), (name, report)
            found[name] = torch.stack(runner.logits(list(ids), [torch.arange(ids.shape[1])] * len(ids)))
    return {name: (value, found[name]) for name, value in expected.items()}


@pytest.mark.parametrize("name", [*LLAMA, *MIXTRAL])
def test_plain_transformers_computes_what_was_measured(name: str, compared: dict[str, tuple[Tensor, Tensor]]) -> None:
    expected, found = compared[name]
    assert found.shape == expected.shape and expected.std() > 0.1
    assert float((found - expected).abs().max()) < 1e-4
