import pytest
import torch

from subeight.errors import ModelError
from subeight.formats import Format, Sparse, Thin, quantize
from subeight.kernels.native import native
from subeight.train import qlora_frozen
from subeight.train.qlora_frozen import FrozenEmbedding, FrozenExperts, FrozenLinear, FrozenWeight

FORMATS = ["nf4:g32", "int4:g32:asym", "int3:g32", "int8:channel", "int5:tensor", "mxfp4", "fp8", "int4:g32:had"]


def weight_of(format: str, rows: int = 40, width: int = 64, seed: int = 0):
    weight = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    return quantize(weight, Format.parse(format))


def inputs(rows: int = 7, width: int = 64, dtype=torch.float32):
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(1)).to(dtype)
    return x.requires_grad_()


def oracle(x, weight, gradient):
    """y = x W^T and dx = g W in float64, of the weight that the codes stand for."""
    W = weight.dequantize().double()
    return x.detach().double() @ W.T, gradient.double() @ W


@pytest.mark.parametrize("piece", [1 << 22, 16 * 64])
@pytest.mark.parametrize("format", FORMATS)
def test_products_and_gradients_are_those_of_the_dequantized_weight(format, piece, monkeypatch):
    monkeypatch.setattr(qlora_frozen, "PIECE", piece)
    weight, x = weight_of(format), inputs()
    y = FrozenLinear(FrozenWeight(weight, torch.float32))(x)
    gradient = torch.randn(y.shape, generator=torch.Generator().manual_seed(2))
    y.backward(gradient)
    wanted, slope = oracle(x, weight, gradient)
    torch.testing.assert_close(y.double(), wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(x.grad.double(), slope, rtol=1e-4, atol=1e-4)


def test_what_is_set_apart_is_multiplied_too():
    weight = weight_of("int3:g32")
    matrix = torch.randn(40, 64, generator=torch.Generator().manual_seed(5))
    weight.sparse = Sparse.of(matrix, matrix > 2)
    weight.thin = Thin.of(matrix[:, :3], matrix[:3])
    x = inputs()
    y = FrozenLinear(FrozenWeight(weight, torch.float32))(x)
    torch.testing.assert_close(y.double(), oracle(x, weight, y)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(isinstance(native(), str), reason="no C++ compiler")
def test_our_kernel_gives_the_same_numbers_in_bf16(monkeypatch):
    weight, x = weight_of("nf4:g32"), inputs(dtype=torch.bfloat16)
    fast = FrozenWeight(weight, torch.bfloat16)
    monkeypatch.setattr(qlora_frozen, "native", lambda: "not here")
    slow = FrozenWeight(weight, torch.bfloat16)
    assert torch.equal(fast.dense(torch.bfloat16), slow.dense(torch.bfloat16))
    assert torch.equal(fast.forward(x.detach()), slow.forward(x.detach()))


def test_nothing_dense_is_kept_for_the_backward_pass():
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda value: kept.append(value) or value, lambda value: value):
        FrozenLinear(FrozenWeight(weight_of("nf4:g32"), torch.float32))(inputs())
    assert kept == []
    with torch.autograd.graph.saved_tensors_hooks(lambda value: kept.append(value) or value, lambda value: value):
        torch.nn.functional.linear(inputs(), torch.randn(40, 64))
    assert kept, "a plain product keeps its weight, so the test can fail"


@pytest.mark.parametrize("format", ["nf4:g32", "int3:g32:asym", "int8:channel"])
def test_bytes_are_those_of_the_packed_codes(format):
    weight = weight_of(format)
    assert FrozenWeight(weight, torch.float32).nbytes == weight.nbytes


@pytest.mark.parametrize("format", ["int8:channel", "nf4:g32", "int4:g32:asym", "int6:tensor"])
def test_embeddings_give_the_rows_of_the_weight(format, monkeypatch):
    monkeypatch.setattr(qlora_frozen, "PIECE", 16 * 64)
    weight = weight_of(format)
    ids = torch.tensor([[0, 39, 5], [17, 16, 15]])
    found = FrozenEmbedding(FrozenWeight(weight, torch.float32, by_rows=True), torch.float32)(ids)
    assert torch.equal(found, weight.dequantize()[ids])


def test_rounded_inputs_pass_the_gradient_as_if_they_were_not():
    weight, x = weight_of("int8:channel"), inputs()
    plain = FrozenLinear(FrozenWeight(weight, torch.float32))
    rounded = FrozenLinear(FrozenWeight(weight, torch.float32), inputs=(Format.parse("int4:token"), None))
    first, second = plain(x), rounded(x)
    assert not torch.equal(first, second)
    (slope,) = torch.autograd.grad(first.sum(), x)
    assert torch.equal(slope, torch.autograd.grad(second.sum(), x)[0])


def test_packed_experts_answer_for_a_fused_parameter():
    parts = [[weight_of("nf4:g32", seed=2 * e), weight_of("nf4:g32", seed=2 * e + 1)] for e in range(3)]
    experts = FrozenExperts("mlp", [[FrozenWeight(part, torch.float32) for part in two] for two in parts])
    x = inputs()
    for e in range(3):
        whole = torch.cat([part.dequantize() for part in parts[e]])
        torch.testing.assert_close(torch.nn.functional.linear(x, experts[torch.tensor(e)]), x @ whole.T)
    with pytest.raises(ModelError, match="computes its experts by"):
        torch.matmul(x, experts[0])
