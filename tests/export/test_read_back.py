"""What is written as compressed-tensors is read back tensor by tensor, as the package itself decompresses it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig
from safetensors.torch import load_file
from torch import Tensor

from subeight.errors import ModelError
from subeight.formats import Format, quantize
from subeight.models.read.compressed_tensors import from_args, read, to_args
from tests.export.conftest import write

WIDTH = 48


def config(args: dict, stored: str = "pack-quantized", **more: object) -> dict:
    group = {"targets": ["Linear"], "weights": args, "input_activations": None, "format": stored}
    return {"quant_method": "compressed-tensors", "format": stored, "config_groups": {"group_0": group}, **more}


def getter(parts: dict[str, Tensor]) -> Callable[[str], Tensor]:
    return lambda name: parts[name]


def compressed(format: str, stored: str, seed: int = 0) -> tuple[dict, dict[str, Tensor], Tensor]:
    """A linear that the package compresses by itself, and what it makes of it again."""
    parsed = Format.parse(format)
    weight = torch.randn(10, WIDTH, generator=torch.Generator().manual_seed(seed)).to(parsed.scale_dtype)
    ours = quantize(weight, parsed)
    said = config(to_args(parsed), stored)
    scheme = QuantizationConfig(**said).config_groups["group_0"]
    compressor = BaseCompressor.get_value_from_registry(stored)
    shape = (1,) if parsed.per == "tensor" else ours.scales.shape
    scales = ours.scales.reshape(shape).to(parsed.scale_dtype)
    state = {"weight": ours.dequantize(parsed.scale_dtype), "weight_scale": scales}
    if ours.zeros is not None:
        state["weight_zero_point"] = ours.zeros.reshape(shape)
    packed = compressor.compress(state, scheme)
    dense = compressor.decompress(packed, scheme)["weight"]
    return said, {f"model.up.{name}": value for name, value in packed.items()}, dense


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("place", ["g16", "g16:asym", "channel", "channel:asym", "tensor", "tensor:asym"])
@pytest.mark.parametrize("scale", ["bf16", "fp16", "fp32"])
def test_packed_weights_equal_the_packages_own(bits: int, place: str, scale: str) -> None:
    said, parts, dense = compressed(f"int{bits}:{place}:{scale}", "pack-quantized", bits)
    found = read(said).linear("model.up", getter(parts))
    assert torch.equal(found.dequantize(dense.dtype), dense)
    assert str(found.format) == str(Format.parse(f"int{bits}:{place}:{scale}"))


@pytest.mark.parametrize(
    ("format", "stored"),
    [
        ("int8:channel", "int-quantized"),
        ("int8:channel:asym", "int-quantized"),
        ("int4:g16", "int-quantized"),
        ("int8:tensor", "naive-quantized"),
        ("fp8", "float-quantized"),
        ("fp8:tensor", "float-quantized"),
        ("fp8:g16:fp32", "float-quantized"),
    ],
)
def test_weights_of_a_byte_each_equal_the_packages_own(format: str, stored: str) -> None:
    said, parts, dense = compressed(format, stored)
    found = read({"quantization_config": said}).linear("model.up", getter(parts))
    assert torch.equal(found.dequantize(dense.dtype), dense)


def test_a_written_checkpoint_is_read_back_code_by_code(tmp_path: Path) -> None:
    recipe = (
        "weights: int4:g64\ninputs: int8:token\nrules: "
        "[{match: '*.down_proj', weights: int8:channel, inputs: int8:tensor},"
        " {match: '*.0.*.o_proj', keep: true}, {match: '*.q_proj', weights: fp8, inputs: null}]"
    )
    written = write(tmp_path / "checkpoint", recipe)
    parts: dict[str, Tensor] = {}
    for path in sorted(written.directory.glob("*.safetensors")):
        parts |= load_file(path)
    reader = read(json.loads((written.directory / "config.json").read_text()))
    for site in written.plan.sites:
        found = reader.linear(site.linear.name, getter(parts))
        assert reader.inputs(site.linear.name) == site.inputs
        if site.weights is None:
            assert found is None
            continue
        expected = written.weights[site.linear.name]
        assert (found.format, found.shape) == (expected.format, expected.shape)
        assert torch.equal(found.codes, expected.codes) and torch.equal(found.scales, expected.scales)


def test_a_name_comes_before_a_pattern_and_a_pattern_before_the_class() -> None:
    int8, int4, int2 = (to_args(Format.parse(text)) for text in ("int8", "int4", "int2"))
    groups = {
        "a": {"targets": ["Linear"], "weights": int8},
        "b": {"targets": ["re:.*up$"], "weights": int4},
        "c": {"targets": ["model.up"], "weights": int2},
    }
    reader = read({"format": "pack-quantized", "config_groups": groups, "ignore": ["lm_head", "re:.*gate$"]})
    bits = {name: (reader.scheme(name).weights or {})["num_bits"] for name in ("model.up", "other.up", "down")}
    assert bits == {"model.up": 2, "other.up": 4, "down": 8}
    assert reader.scheme("lm_head") is None and reader.scheme("mlp.gate") is None
    assert reader.inputs("lm_head") is None and reader.linear("lm_head", getter({})) is None


@pytest.mark.parametrize("text", ["int4:g64:sym", "int3:channel:asym", "int8:tensor", "fp8", "fp8:g128", "int8:token"])
def test_formats_survive_the_packages_words(text: str) -> None:
    format = Format.parse(text)
    assert from_args(to_args(format)) == format


def test_the_strategy_may_be_left_out() -> None:
    assert str(from_args({"num_bits": 4, "group_size": 32})) == "int4:g32:sym"
    assert str(from_args({"num_bits": 4, "group_size": -1})) == "int4:channel:sym"
    assert str(from_args({"num_bits": 8})) == "int8:tensor:sym"


def test_zero_points_of_older_checkpoints_are_not_packed() -> None:
    said, parts, dense = compressed("int4:g16:asym", "pack-quantized")
    reader = read(said)
    zeros = reader.linear("model.up", getter(parts)).zeros
    found = reader.linear("model.up", getter({**parts, "model.up.weight_zero_point": zeros}))
    assert torch.equal(found.dequantize(dense.dtype), dense)


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ({"quant_method": "gptq"}, "quant_method is 'gptq'"),
        ({"transform_config": {"config_groups": {}}}, "online transforms"),
        (config({"num_bits": 4}, "marlin-24"), "stored as 'marlin-24'"),
        ({"config_groups": {"W4A16": ["Linear"]}}, "names a preset"),
        ({"ignore": ["re:("]}, "no valid pattern"),
    ],
)
def test_a_config_that_cannot_be_read_says_why(said: dict, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        read(said)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"num_bits": 1}, "int of 1 bits"),
        ({"num_bits": 4, "type": "float"}, "float of 4 bits"),
        ({"num_bits": 8, "type": "float", "strategy": "block"}, "scale per block"),
        ({"num_bits": 4, "group_size": 16, "actorder": "group"}, r"lacks model\.up\.weight_g_idx"),
    ],
)
def test_weights_that_cannot_be_held_say_why(args: dict, says: str) -> None:
    _, parts, _ = compressed("int4:g16", "pack-quantized")
    with pytest.raises(ModelError, match=says):
        read(config(args)).linear("model.up", getter(parts))


def test_damaged_tensors_are_named() -> None:
    said, parts, _ = compressed("int4:g16", "pack-quantized")
    reader = read(said)
    without = {name: value for name, value in parts.items() if not name.endswith("packed")}
    with pytest.raises(ModelError, match=r"lacks model.up.weight_packed"):
        reader.linear("model.up", getter(without))
    with pytest.raises(ModelError, match=r"weight_packed has the shape \[10, 5\]"):
        reader.linear("model.up", getter({**parts, "model.up.weight_packed": parts["model.up.weight_packed"][:, :5]}))
    with pytest.raises(ModelError, match=r"2 scales per row.* needs 3"):
        reader.linear("model.up", getter({**parts, "model.up.weight_scale": parts["model.up.weight_scale"][:, :2]}))
