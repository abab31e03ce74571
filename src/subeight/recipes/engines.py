"""Which engines run which format, as `export` writes it. A table of facts, with sources.

What compressed-tensors cannot say is run by `subeight` alone (or exported `--to dense`, which gives up the size).
"""

from collections.abc import Callable
from dataclasses import dataclass

from subeight.formats import Format
from subeight.formats.ggml import unsayable_blocks
from subeight.models.linear_info import LinearInfo
from subeight.models.read.compressed_tensors import unsayable

ENGINES = ("vllm", "sglang", "transformers", "gguf", "subeight")


def _int_bits(format: Format) -> int | None:
    return int(format.grid.removeprefix("int")) if format.grid.startswith("int") else None


def _weight_only_int(weights: Format, inputs: Format | None) -> bool:
    return inputs is None and _int_bits(weights) is not None and weights.per in ("group", "channel")


def _w8a8_int(weights: Format, inputs: Format | None) -> bool:
    return (
        _int_bits(weights) == 8
        and weights.per in ("channel", "tensor")
        and weights.symmetric
        and inputs is not None
        and inputs.grid == "int8"
    )


def _wna8_int(weights: Format, inputs: Format | None) -> bool:
    bits = _int_bits(weights)
    return (
        bits is not None
        and bits < 8
        and weights.per in ("group", "channel")
        and weights.symmetric
        and inputs is not None
        and (inputs.grid, inputs.per, inputs.symmetric) == ("int8", "token", True)
    )


def _fp8(weights: Format, inputs: Format | None) -> bool:
    return weights.grid == "fp8" and weights.per in ("channel", "tensor") and (inputs is None or inputs.grid == "fp8")


def _w4_fp8(weights: Format, inputs: Format | None) -> bool:
    return (
        weights.grid == "int4"
        and weights.per == "group"
        and weights.symmetric
        and inputs is not None
        and (inputs.grid, inputs.per) == ("fp8", "token")
    )


def _marlin(weights: Format, inputs: Format | None) -> bool:
    return _weight_only_int(weights, inputs) and _int_bits(weights) in (4, 8) and weights.group in (None, 32, 64, 128)


def _ggml_blocks(weights: Format, inputs: Format | None) -> bool:
    return inputs is None and unsayable_blocks(weights, 32) is None  # its width is looked at below


@dataclass(frozen=True)
class Fact:
    """One thing that an engine runs, and where that is written."""

    engine: str
    runs: Callable[[Format, Format | None], bool]
    source: str


FACTS = (
    Fact("vllm", _marlin, "compressed-tensors pack-quantized W4A16 and W8A16 by Marlin: vllm docs, INT4 W4A16"),
    # Compiled at load time for Turing to Hopper; other groups than Marlin's go the same way.
    Fact("vllm", _weight_only_int, "pack-quantized W2 to W8 by Humming: vllm pull request 34556"),
    Fact("vllm", _w8a8_int, "int-quantized: vllm CompressedTensorsW8A8Int8, static tensor and dynamic token"),
    Fact(
        "vllm",
        _wna8_int,
        "pack-quantized W2 to W7 with int8 tokens: vllm CompressedTensorsWNA8Int, pull request 46390",
    ),
    Fact("vllm", _fp8, "float-quantized: vllm CompressedTensorsW8A8Fp8 and W8A16Fp8"),
    Fact("vllm", _w4_fp8, "pack-quantized W4AFP8 on Hopper: vllm CompressedTensorsW4A8Fp8"),
    Fact(
        "sglang",
        _marlin,
        "sglang docs, quantization: compressed-tensors W4A16; mixed widths 'not fully supported'",
    ),
    Fact("sglang", _w8a8_int, "sglang docs, quantization: w8a8_int8"),
    Fact("sglang", _fp8, "sglang docs, quantization: w8a8_fp8"),
    # transformers decompresses on the first forward pass whatever the package compressed-tensors can read.
    Fact("transformers", lambda _weights, _inputs: True, "transformers docs, quantization/compressed_tensors"),
    Fact("gguf", _ggml_blocks, "ggml-common.h: blocks of 32 and 256 columns; export --to gguf"),
)


def engines(linear: LinearInfo, weights: Format | None, inputs: Format | None) -> tuple[str, ...]:
    """The engines that can run this linear in this format; one that is kept runs everywhere."""
    if weights is None:
        return ENGINES
    runs = {fact.engine for fact in FACTS if fact.runs(weights, inputs)} | {"subeight"}
    if unsayable(linear, weights, inputs) is not None:
        runs -= {"vllm", "sglang", "transformers"}
    if linear.kind in ("conv1d", "expert") or unsayable_blocks(weights, linear.shape[1]) is not None:
        runs -= {"gguf"}
    if linear.whole:  # stored expert by expert, as vLLM takes it; the model of transformers has them in one tensor
        runs -= {"sglang", "transformers"}
    return tuple(engine for engine in ENGINES if engine in runs)
