"""The student computes what its start does, and what it is written as computes what it did."""

from pathlib import Path

import pytest
import torch

from subeight.engine.transcode import stored_plan, transcode
from subeight.errors import ModelError
from subeight.export import exporter_for
from subeight.models.align import align
from subeight.models.model import Model
from subeight.models.whole import Whole
from subeight.train.student import student
from subeight.verbs.options import Options
from subeight.verbs.quantize import quantize
from tests.models.families import FAMILIES, build, save
from tests.verbs import small

CPU = torch.device("cpu")
IDS = torch.arange(24).view(2, 12)


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[Model, Model]:
    folder = tmp_path_factory.mktemp("student")
    base = small.save_llama(folder / "base")
    recipe = small.write_recipe(folder / "rtn.yaml", small.RTN)
    options = Options(out=folder / "start", quiet=True, threads=1, dtype="float32")
    quantize(str(base), str(recipe), options=options)
    return Model(str(base)), Model(str(folder / "start"))


def logits(module: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return module(input_ids=IDS).logits


def test_it_computes_what_its_start_does(pair: tuple[Model, Model]) -> None:
    base, start = pair
    assert start.codes is not None
    made = student(start, base, align(base, start), set(start.codes.names), torch.float32, CPU)
    assert torch.equal(logits(made.module), logits(Whole(start, torch.float32).module))
    assert set(made.weights) == set(start.codes.names)
    assert {name.rsplit(".", 2)[-2] for name in made.vectors} == {"input_layernorm", "post_attention_layernorm", "norm"}


def test_what_was_trained_is_what_is_written(pair: tuple[Model, Model], tmp_path: Path) -> None:
    base, start = pair
    assert start.codes is not None
    made = student(start, base, None, set(start.codes.names), torch.float32, CPU)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in made.weights.values():
            weight.position += torch.randn(weight.position.shape, generator=draw)
            weight.factor *= 1.1
        for vector in made.vectors.values():
            vector *= 1 + 0.1 * torch.rand(vector.shape, generator=draw)
    plan = stored_plan(start)
    exporter = exporter_for("compressed-tensors")
    transcode(start, plan, exporter, tmp_path / "out", changed=made.stored(), values=made.values(), quiet=True)
    written = Whole(Model(str(tmp_path / "out")), torch.float32).module
    assert torch.equal(logits(made.module), logits(written))
    assert not torch.equal(logits(written), logits(Whole(start, torch.float32).module))


def test_only_what_is_named_is_trained(pair: tuple[Model, Model]) -> None:
    base, start = pair
    name = "model.layers.1.mlp.down_proj"
    made = student(start, base, None, {name}, torch.float32, CPU)
    assert set(made.weights) == set(made.stored()) == {name}
    assert torch.equal(logits(made.module), logits(Whole(start, torch.float32).module))


def test_what_is_not_quantized_is_refused(pair: tuple[Model, Model]) -> None:
    base, _ = pair
    with pytest.raises(ModelError, match="is not quantized; quantize it first"):
        student(base, None, None, {"x"}, torch.float32, CPU)


def test_fused_experts_are_refused(tmp_path: Path) -> None:
    base = save(build(FAMILIES["mixtral"].config), tmp_path / "base")
    recipe = small.write_recipe(tmp_path / "rtn.yaml", "weights: int4:g16:sym\nmethods: [rtn]\n")
    quantize(str(base), str(recipe), options=Options(out=tmp_path / "start", quiet=True, threads=1, dtype="float32"))
    start = Model(str(tmp_path / "start"))
    assert start.codes is not None
    with pytest.raises(ModelError, match="slice of a fused parameter"):
        student(start, None, None, set(start.codes.names), torch.float32, CPU)
