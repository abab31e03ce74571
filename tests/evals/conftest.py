"""Two tiny models of one family, for evaluations that are compared with plain transformers."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from subeight.evals.passes import Computing
from subeight.models.model import Model
from subeight.text import EvaluationSet, evaluate_set
from tests.verbs import small


@pytest.fixture(scope="package")
def pair(tmp_path_factory) -> tuple[Path, Path]:
    """A baseline, and the same with noise on its weights."""
    folder = tmp_path_factory.mktemp("pair")
    base, other = small.save_llama(folder / "base"), small.save_llama(folder / "other")
    generator = torch.Generator().manual_seed(1)
    tensors = load_file(other / "model.safetensors")
    for name in sorted(tensors):
        if tensors[name].ndim == 2:
            tensors[name] += 0.05 * torch.randn(tensors[name].shape, generator=generator)
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    return base, other


@pytest.fixture
def plain() -> Computing:
    return Computing(torch.float32, torch.device("cpu"), quiet=True)


@pytest.fixture
def texts(tmp_path, pair) -> Callable[..., EvaluationSet]:
    """The evaluation set of JSONL rows, as the baseline's tokenizer cuts them."""

    def cut(rows: list[dict], **options) -> EvaluationSet:
        path = small.write_rows(tmp_path / "rows.jsonl", rows)
        return evaluate_set([path], Model(pair[0]).tokenizer(), **{"window": 48, **options})

    return cut
