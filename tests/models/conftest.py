"""Tiny checkpoints, saved once a session, and logits that were streamed block by block."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from subeight.models.block import Block
from subeight.models.gauge import Gauge
from subeight.models.model import Model
from subeight.models.shell import Shell
from tests.models.families import FAMILIES, build, save


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of a family's tiny checkpoint; not to be changed."""
    made: dict[str, Path] = {}

    def find(family: str) -> Path:
        if family not in made:
            made[family] = save(build(FAMILIES[family].config), tmp_path_factory.mktemp(family))
        return made[family]

    return find


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(0, 128, (2, 17), generator=torch.Generator().manual_seed(0))


def streamed(model: Model, ids: Tensor, dtype: torch.dtype = torch.float32, gauge: Gauge | None = None) -> Tensor:
    """Logits of ids [batch, length], computed block by block, in a gauge where one is given."""
    shell = Shell(model, dtype)
    if gauge is not None:
        gauge.shell(shell)
    hidden = shell.embed(ids)
    for index in range(len(model.skeleton.blocks)):
        block = Block(model, index, dtype)
        if gauge is not None:
            gauge.apply(block)
        hidden = block(hidden, shell.call(tuple(ids.shape), index))
    head = shell.head()
    return torch.stack([head(row) for row in shell.finish(hidden)])


def plain(made: PreTrainedModel, ids: Tensor) -> Tensor:
    """Logits as transformers computes them."""
    with torch.no_grad():
        return made(input_ids=ids, use_cache=False).logits
