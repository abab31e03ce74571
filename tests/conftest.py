"""One thread for every test, and the real models beside the checkout where they are."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from subeight.errors import ModelError
from subeight.models.smollm2 import unpacked


@pytest.fixture(scope="session", autouse=True)
def single_thread() -> Iterator[None]:
    """Numbers depend on the thread count, and test processes share the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shared_models() -> Path:
    """Where small real models may lie; never part of the project."""
    return Path(__file__).resolve().parents[2] / "shared" / "data" / "models"


@pytest.fixture(scope="session")
def real_model(shared_models: Path) -> Callable[[str], Path]:
    """The directory of a real model by name, `smollm2` included; skips the test where it is not there."""

    def find(name: str) -> Path:
        if name == "smollm2":
            try:
                return unpacked()
            except ModelError as error:
                pytest.skip(str(error))
        if not (shared_models / name / "config.json").is_file():
            pytest.skip(f"{name} is not in {shared_models}")
        return shared_models / name

    return find
