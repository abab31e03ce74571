import pytest
import torch
import torch.nn.functional as F
from transformers.pytorch_utils import Conv1D

from subeight.models.model import Model
from subeight.models.watch import Watcher, identity


def watched(function):
    seen = []
    with Watcher(lambda weight, value, transposed: seen.append((weight, value, transposed))), torch.no_grad():
        function()
    return seen


@pytest.mark.parametrize(
    ("product", "transposed"),
    [
        (lambda x, w: F.linear(x, w.T), False),
        (lambda x, w: torch.addmm(torch.zeros(5), x, w), True),
        (lambda x, w: x @ w, True),
        (torch.mm, True),
        (torch.matmul, True),
    ],
)
def test_every_spelling_of_a_product_is_seen(product, transposed):
    x, w = torch.ones(3, 4), torch.ones(4, 5)
    ((weight, value, flipped),) = watched(lambda: product(x, w))
    assert value is x
    assert weight.data_ptr() == w.data_ptr()
    assert flipped is transposed


def test_a_conv1d_is_seen_with_its_own_parameter():
    linear, x = Conv1D(5, 4), torch.ones(2, 3, 4)
    ((weight, value, transposed),) = watched(lambda: linear(x))
    assert weight is linear.weight
    assert identity(value)[0] == identity(x)[0]
    assert transposed


def test_a_conv1d_is_a_linear_with_its_weight_transposed(checkpoint):
    model = Model(checkpoint("gpt2"))
    view = next(view for view in model.structures[0].linears() if view.info.name.endswith("mlp.c_fc"))
    parameter = model.weights.read(view.parameter)
    assert view.info.kind == "conv1d"
    assert view.info.shape == (256, 64) == tuple(view.of(parameter).shape)
    assert torch.equal(view.of(parameter), parameter.T)
    view.of(parameter)[7] = 3.0
    assert bool((parameter[:, 7] == 3).all())


def test_identity_tells_tensors_apart_and_views_together():
    a, b = torch.ones(2, 6), torch.ones(2, 6)
    assert identity(a) == identity(a.view(3, 4))
    assert identity(a) != identity(b)
    assert identity(a) != identity(a[1])
