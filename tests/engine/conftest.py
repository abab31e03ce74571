"""Tiny checkpoints of every family, saved once a session."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.models.families import FAMILIES, build, save


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The directory of a family's tiny checkpoint in a dtype; not to be changed."""
    made: dict[tuple[str, torch.dtype], Path] = {}

    def find(family: str, dtype: torch.dtype = torch.float32) -> Path:
        if (family, dtype) not in made:
            model = build(FAMILIES[family].config).to(dtype)
            made[family, dtype] = save(model, tmp_path_factory.mktemp(family))
        return made[family, dtype]

    return find
