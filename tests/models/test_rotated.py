"""A turned model computes the same in another basis: logits of whole models, for every family that can be turned."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from subeight.errors import RecipeError
from subeight.models.model import Model
from subeight.models.rotated import _around_the_mean, rotated
from subeight.models.whole import Whole
from tests.engine.conftest import checkpoint  # noqa: F401 - a fixture
from tests.engine.tiny import calibration
from tests.models.families import FAMILIES

Find = Callable[..., Path]
REFUSED = ("gemma2", "gemma3", "olmo2")


def logits(model: Model) -> torch.Tensor:
    with torch.no_grad():
        return Whole(model, torch.float32).module(input_ids=calibration(2, 16), use_cache=False).logits


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in REFUSED])
@pytest.mark.parametrize("values", [True, False])
def test_the_function_stays(checkpoint: Find, family: str, values: bool) -> None:  # noqa: F811
    model = Model(checkpoint(family))
    turned = rotated(model, values=values)
    one, other = logits(model), logits(turned)
    assert float((one - other).abs().max()) < 1e-4 * float(one.abs().max())
    assert not turned.skeleton.tied
    changed = [view for view in model.views() if view.expert is None]
    for view in changed:
        before, after = (view.of(each.weights.read(view.parameter)) for each in (model, turned))
        assert not torch.allclose(before, after, atol=1e-3), view.info.name


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "phi3", "mixtral"])
def test_values_are_turned_between_v_and_o(checkpoint: Find, family: str) -> None:  # noqa: F811
    model = Model(checkpoint(family))
    with_values, without = (rotated(model, values=values) for values in (True, False))
    both = [
        (view.info.name, *(view.of(each.weights.read(view.parameter)) for each in (with_values, without)))
        for view in model.views()
    ]
    differ = {name for name, one, other in both if not torch.allclose(one, other, atol=1e-4)}
    assert len(differ) >= 2 * len(model.skeleton.blocks)
    assert not any("mlp" in name or "expert" in name for name in differ)


@pytest.mark.parametrize("family", REFUSED)
def test_norms_after_the_linears_are_refused_in_one_sentence(checkpoint: Find, family: str) -> None:  # noqa: F811
    with pytest.raises(RecipeError, match=r"computes something else when its stream is turned .* int4:g64:sym:had"):
        rotated(Model(checkpoint(family)), values=True)


def test_norms_are_emptied_and_a_loud_channel_is_shared(checkpoint: Find) -> None:  # noqa: F811
    model = Model(checkpoint("llama"))
    turned = rotated(model, values=True)
    for name in ("model.layers.0.input_layernorm.weight", "model.norm.weight"):
        assert torch.equal(turned.weights.read(name), torch.ones(model.skeleton.width))
    assert turned.weights.read("lm_head.weight").shape == model.weights.read("model.embed_tokens.weight").shape
    assert "lm_head.weight" in set(turned.weights.names())


def test_around_the_mean_is_orthogonal_and_keeps_it() -> None:
    matrix = _around_the_mean(48).double()
    assert torch.allclose(matrix @ matrix.T, torch.eye(48, dtype=torch.float64), atol=1e-5)
    assert torch.allclose(torch.ones(48, dtype=torch.float64) @ matrix, torch.ones(48, dtype=torch.float64), atol=1e-5)
