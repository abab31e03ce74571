import copy
import itertools

import numpy as np
import pytest
import torch

from subeight.formats import Format, QTensor, Scales, Sparse, Thin, quantize
from subeight.formats.activations import fake_quantize
from subeight.kernels import linear, runners, table
from subeight.kernels.linear import QuantLinear
from subeight.kernels.native import native
from subeight.kernels.runners import Ask

CPU = torch.device("cpu")
WEIGHTS = [
    "int4:g64",
    "int3:g64:asym",
    "int2:g32",
    "nf4:g64",
    "mxfp4",
    "int8:channel",
    "int5:g64",
    "fp8",
    "int4:g64:had",
]
INPUTS = [None, "int8:token", "int8:tensor", "int4:token"]
NATIVE = pytest.mark.skipif(isinstance(native(), str), reason="no C++ compiler")


def drawn(text: str, out: int = 48, width: int = 256) -> QTensor:
    draw = torch.Generator().manual_seed(4)
    return quantize(torch.randn(out, width, generator=draw) / 16, Format.parse(text))


def rows_of(count: int, width: int = 256) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(count))


def reference(weight: QTensor, x: torch.Tensor, inputs: Format | None, scales: Scales | None) -> np.ndarray:
    read = x if inputs is None else fake_quantize(x, inputs, scales)
    return read.double().numpy() @ weight.dequantize().double().numpy().T


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("text, inputs", list(itertools.product(WEIGHTS, INPUTS)))
def test_what_the_table_chooses_is_the_twin(text, inputs, rows, dtype):
    weight, x = drawn(text), rows_of(rows).to(dtype)
    format = None if inputs is None else Format.parse(inputs + (":had" if text.endswith("had") else ""))
    scales = Scales(torch.full((1, 1), 0.03)) if inputs == "int8:tensor" else None
    found = QuantLinear(weight, inputs=format, scales=scales)(x)
    wanted = reference(weight, x, format, scales)
    assert found.dtype == dtype
    assert np.linalg.norm(found.double().numpy() - wanted) <= 1e-2 * np.linalg.norm(wanted)


@pytest.mark.parametrize("inputs", ["int8:token", "int8:tensor"])
def test_integers_are_exact_before_scaling(inputs):
    weight, x = drawn("int8:channel"), rows_of(40).bfloat16()
    weight.scales.fill_(1.0)
    scales = Scales(torch.full((1, 1), 0.0625)) if inputs == "int8:tensor" else None
    codes, own = runners.rounded_codes(x, Format.parse(inputs), scales)
    product = runners.Int8(weight, Format.parse(inputs), scales)._product(codes, 1.0, torch.float32)
    assert torch.equal(product.long(), codes.long() @ weight.codes.long().T)
    stands_for = (codes.to(x.dtype) * own.to(x.dtype)).to(x.dtype)
    assert torch.equal(stands_for, fake_quantize(x, Format.parse(inputs), scales))


def test_bias_values_apart_and_a_thin_product():
    weight, x = drawn("int3:g64"), rows_of(2)
    draw = torch.Generator().manual_seed(5)
    chosen = torch.rand(weight.shape, generator=draw) < 0.01
    weight.sparse = Sparse.of(torch.randn(weight.shape, generator=draw), chosen)
    weight.thin = Thin.of(torch.randn(48, 4, generator=draw) / 8, torch.randn(4, 256, generator=draw) / 8)
    bias = torch.randn(48, generator=draw)
    found = QuantLinear(weight, bias)(x[None])
    wanted = reference(weight, x, None, None) + bias.double().numpy()
    assert found.shape == (1, 2, 48)
    assert np.linalg.norm(found[0].double().numpy() - wanted) <= 1e-2 * np.linalg.norm(wanted)


@pytest.mark.parametrize("text, inputs", [("int4:g64", None), ("int8:channel", "int8:token"), ("int5:g64", None)])
def test_it_compiles_in_one_graph_as_a_copy_does(text, inputs):
    layer = QuantLinear(drawn(text), torch.ones(48), None if inputs is None else Format.parse(inputs))
    x = rows_of(3)[None]
    wanted, twin = layer(x), copy.deepcopy(layer)
    del layer
    compiled = torch.compile(twin, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), wanted) and torch.equal(twin(x), wanted)


@NATIVE
def test_packed_is_held_and_nothing_else():
    for text in ("int4:g64", "int3:g64", "int2:g64"):
        weight = drawn(text)
        layer = QuantLinear(weight)
        assert layer.choice.name == "look-up"
        assert layer.nbytes == weight.nbytes
        assert not list(layer.parameters()) and not layer.state_dict()


@NATIVE
def test_the_table_says_who_runs_how_many_rows_and_why():
    few = QuantLinear(drawn("int4:g64")).runner
    assert [few.kernel(rows) for rows in (1, runners.ONE_BY_ONE, runners.ONE_BY_ONE + 1)] == [
        "look-up",
        "look-up",
        "dequantize",
    ]
    odd = table.choose(Ask(Format.parse("int5:g64"), None, (48, 256), CPU))
    assert odd.name == "dequantize"
    assert odd.passed["look-up"] == "it packs 2, 3, 4 and 8 bits in whole groups, not int5:g64:sym of (48, 256)"
    assert "not symmetric int8" in odd.passed["oneDNN int8"]


@pytest.mark.parametrize(
    "fast, own, name", [(True, True, "oneDNN int8"), (False, True, "int8"), (False, False, "dequantize")]
)
def test_a_slow_reference_of_int8_is_not_chosen(monkeypatch, fast, own, name):
    if own and (isinstance(native(), str) or not native().has_int8):
        pytest.skip("no products of bytes in this build")
    monkeypatch.setattr(runners, "multiplies_int8", lambda: fast)
    if not own:
        monkeypatch.setattr(runners, "native", lambda: "no compiler")
    layer = QuantLinear(drawn("int8:channel"), inputs=Format.parse("int8:token"))
    assert layer.choice.name == name
    assert fast or "slow reference" in layer.choice.passed["oneDNN int8"]


def test_without_a_compiler_everything_still_works(monkeypatch):
    monkeypatch.setattr(runners, "native", lambda: "the C++ kernels could not be built (no compiler): install one.")
    layer = linear.QuantLinear(drawn("int4:g64"))
    assert layer.choice.name == "dequantize" and "no compiler" in layer.choice.passed["look-up"]
    x = rows_of(3)
    assert np.allclose(layer(x).numpy(), reference(drawn("int4:g64"), x, None, None), atol=1e-4)
