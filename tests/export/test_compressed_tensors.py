"""The compressed-tensors target: bytes, config, what it refuses, and what plain transformers computes of it."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.quantization import QuantizationConfig
from safetensors.torch import load_file
from torch import Tensor

from subeight.errors import OutputError
from subeight.export import exporter_for
from subeight.export.compressed_tensors import quantization_config, tensors
from subeight.formats import Format, QTensor, quantize
from subeight.models.linear_info import LinearInfo
from subeight.recipes import parse_recipe, resolve
from tests.export.conftest import write
from tests.recipes.conftest import linear, llama, mixture


def fixed_matrix(text: str) -> QTensor:
    """Codes, scales and zero points that are counted, not computed: only the layout decides the bytes."""
    format = Format.parse(text)
    rows, columns = torch.meshgrid(torch.arange(6), torch.arange(64), indexing="ij")
    low, high = format.levels if format.grid.startswith("int") else (-8, 8)
    codes = ((rows * 37 + columns * 11) % (high - low + 1) + low).to(torch.int8)
    codes = codes.float().to(torch.float8_e4m3fn) if format.grid == "fp8" else codes
    scales = (torch.arange(6 * format.groups(64)).reshape(6, -1) + 1) / 64
    scales = scales[:1, :1] if format.per == "tensor" else scales
    zeros = None if format.symmetric else (torch.arange(scales.numel()).reshape(scales.shape) % 3 - 1).to(torch.int8)
    return QTensor(format, (6, 64), codes, scales, zeros)


def digest(parts: dict[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name, value in sorted(parts.items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        found.update(value.contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


@pytest.mark.parametrize(
    ("format", "inputs", "expected"),
    [
        ("int4:g32", None, "371ad7c105874271"),
        ("int3:g32:asym", None, "204794ab0c67ef3d"),
        ("int2:channel", None, "acf0842a68a05b94"),
        ("int5:tensor:asym", None, "8465f9d524cdef50"),
        ("int8:channel", "int8:token", "d5737dde1673b316"),
        ("fp8", "fp8:token", "6b36fbd3c13e603e"),
    ],
)
def test_the_bytes_of_a_fixed_matrix_do_not_change(format: str, inputs: str | None, expected: str) -> None:
    parsed = Format.parse(inputs) if inputs else None
    assert digest(tensors("a", fixed_matrix(format), inputs=parsed)) == expected


@pytest.mark.parametrize("format", ["int4:g32", "int3:g32:asym", "int2:channel", "int7:g16:asym"])
def test_the_words_are_the_packages_own(format: str) -> None:
    weight = fixed_matrix(format)
    parts = tensors("a", weight)
    bits = weight.format.code_bits
    assert torch.equal(parts["a.weight_packed"], pack_to_int32(weight.codes, bits))
    if weight.zeros is not None:
        assert torch.equal(parts["a.weight_zero_point"], pack_to_int32(weight.zeros, bits, packed_dim=0))


def test_int4_words_hold_the_first_column_in_the_lowest_bits() -> None:
    weight = torch.tensor([[-7.5, 7.0, 1.0, 0.0, -8.0, 2.0, 3.0, -1.0]])
    parts = tensors("a", quantize(weight, Format.parse("int4:g8")))
    scale = parts["a.weight_scale"].float().item()
    nibbles = [round(value / scale) + 8 for value in weight[0].tolist()]
    word = sum(nibble << (4 * at) for at, nibble in enumerate(nibbles))
    assert parts["a.weight_packed"].item() % 2**32 == word
    assert parts["a.weight_shape"].tolist() == [1, 8]
    assert set(parts) == {"a.weight_packed", "a.weight_scale", "a.weight_shape"}


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetry", ["sym", "asym"])
def test_the_package_itself_decompresses_to_the_same_weight(bits: int, symmetry: str) -> None:
    format = Format.parse(f"int{bits}:g16:{symmetry}:fp32")
    weight = quantize(torch.randn(6, 48, generator=torch.Generator().manual_seed(bits)), format)
    site = _site("a", (6, 48), format)
    scheme = QuantizationConfig(**quantization_config([site])).config_groups["group_0"]
    parts = {name.removeprefix("a."): value for name, value in tensors("a", weight).items()}
    found = BaseCompressor.get_value_from_registry(scheme.format).decompress(parts, scheme)
    assert torch.equal(found["weight"], weight.dequantize())


def _site(name: str, shape: tuple[int, int], format: Format, inputs: str | None = None) -> object:
    text = f"weights: {format}\ninputs: {inputs or 'null'}"
    return resolve(parse_recipe(text), [linear(f"model.layers.0.{name}", shape)]).sites[0]


def config_of(text: str, linears: Sequence[LinearInfo]) -> dict:
    found = quantization_config(resolve(parse_recipe(text), linears).sites)
    QuantizationConfig(**found)  # the package understands it
    return json.loads(json.dumps(found))


def test_one_format_targets_the_class_and_ignores_what_is_kept() -> None:
    found = config_of("weights: int4:g64\nrules: [{match: '*.0.*.o_proj', keep: true}]", llama())
    assert found["config_groups"]["group_0"]["targets"] == ["Linear"]
    assert found["ignore"] == ["model.layers.0.self_attn.o_proj", "lm_head"]
    assert (found["format"], found["quant_method"]) == ("pack-quantized", "compressed-tensors")
    assert "dequantize" not in found


def test_several_formats_target_names_and_patterns_that_match_just_theirs() -> None:
    text = (
        "weights: int4\ninputs: null\nrules: [{match: '*.down_proj', weights: int8},"
        " {match: '*.1.*.o_proj', weights: fp8}, {match: lm_head, weights: int8}]"
    )
    found = config_of(text, llama())
    groups = [found["config_groups"][f"group_{at}"] for at in range(3)]
    assert groups[1]["targets"] == [r"re:model\.layers\.\d+\.mlp\.down_proj$", "lm_head"]
    assert groups[2]["targets"] == ["model.layers.1.self_attn.o_proj"]
    assert "model.layers.0.self_attn.o_proj" in groups[0]["targets"]
    assert not any("Linear" in group["targets"] for group in groups)
    assert found["format"] == "mixed-precision"
    assert [group["format"] for group in groups] == ["pack-quantized", "pack-quantized", "float-quantized"]


def test_inputs_are_dynamic_by_token_and_static_by_tensor() -> None:
    dynamic = config_of("weights: int8:channel\ninputs: int8:token", llama())["config_groups"]["group_0"]
    static = config_of("weights: int8:channel\ninputs: int8:tensor", llama())["config_groups"]["group_0"]
    assert (dynamic["format"], dynamic["input_activations"]["dynamic"]) == ("int-quantized", True)
    assert static["input_activations"] == {
        "num_bits": 8, "type": "int", "symmetric": True, "strategy": "tensor", "group_size": None, "dynamic": False,
    }  # fmt: skip


def test_static_inputs_need_their_scale() -> None:
    weight = fixed_matrix("int8:channel")
    static = Format.parse("int8:tensor")
    with pytest.raises(OutputError, match=r"a has static inputs.*calibrate it first"):
        tensors("a", weight, inputs=static)
    assert tensors("a", weight, inputs=static, input_scale=torch.tensor(0.5))["a.input_scale"].tolist() == [0.5]


def test_a_bias_goes_along() -> None:
    bias = torch.arange(6.0)
    assert torch.equal(tensors("a", fixed_matrix("int4:g32"), bias=bias)["a.bias"], bias)


@pytest.mark.parametrize(
    ("text", "linears", "says"),
    [
        ("weights: int4:g64", [linear("model.layers.0.mlp.down_proj", (8, 172))], "172 wide.*groups of 43.*would fit"),
        ("weights: int4:g64", [linear("model.layers.0.mlp.down_proj", (8, 67))], "one scale per channel would fit"),
        ("weights: nf4:g64", llama(), "the grid nf4, which we do not write"),
        ("weights: fp8_e5m2", llama(), "the grid fp8_e5m2, which we do not write"),
        ("weights: int4", [linear("model.layers.0.attn.c_attn", (64, 64), kind="conv1d")], "is a Conv1D"),
        ("weights: int4\nrules: [{match: '*.embed_tokens', weights: int8}]", llama(), "is an embedding"),
        ("weights: int4:asym\ninputs: int8:token", llama(), "packed zero points and quantized inputs"),
        ("weights: int4:asym\nrules: [{match: '*.o_proj', weights: int8}]", llama(), "packed zero .*same format"),
        ("weights: int4:asym", mixture(), "an expert with zero points"),
        ("weights: int4\ninputs: int8:token", mixture(), "an expert with quantized inputs"),
        ("weights: int4\nrules: [{match: '*.experts.1.*', keep: true}]", mixture(), "experts only where all of them"),
        ("weights: int4\nrules: [{match: '*.experts.*', keep: true}]", mixture(), "experts only where all of them"),
    ],
)
def test_what_it_cannot_say_is_refused_with_the_way_out(text: str, linears: list[LinearInfo], says: str) -> None:
    exporter = exporter_for("compressed-tensors")
    sites = resolve(parse_recipe(text), linears).sites
    with pytest.raises(OutputError, match=f"{says}.*--to dense"):
        exporter.require(sites)


def test_what_it_can_say_is_not_refused() -> None:
    exporter = exporter_for("compressed-tensors")
    for text in ("weights: int4:asym", "weights: int8:channel\ninputs: int8:tensor", "weights: fp8"):
        exporter.require(resolve(parse_recipe(text), llama()).sites)
    exporter.require(resolve(parse_recipe("weights: int4:g32"), mixture()).sites)


def test_a_plan_that_keeps_everything_needs_no_config() -> None:
    sites = resolve(parse_recipe("weights: int4"), llama()).kept
    assert quantization_config(sites) is None


def test_the_checkpoint_holds_codes_and_not_weights(tmp_path: Path) -> None:
    written = write(tmp_path / "checkpoint", "weights: int4:g64")
    found: dict[str, Tensor] = {}
    for path in sorted(written.directory.glob("*.safetensors")):
        found |= load_file(path)
    stored = sum(value.nbytes for name, value in found.items() if "_proj." in name and "shape" not in name)
    assert stored == written.plan.bytes == sum(weight.nbytes for weight in written.weights.values())
    assert not any(name.endswith("_proj.weight") for name in found)
