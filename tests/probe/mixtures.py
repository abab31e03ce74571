"""A small model, a rounded version of it, and a question of a few prompts."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from subeight.evals.passes import Computing
from subeight.evals.scoring import Question, ask
from subeight.formats import Format, quantize
from subeight.models.model import Model
from subeight.text import evaluate_set
from tests.models.families import FAMILIES, build, save
from tests.verbs.small import save_llama, tokenizer, write_text

COMPUTING = Computing(torch.float32, torch.device("cpu"), quiet=True)


def rounded_copy(source: Path, directory: Path, bits: int = 3) -> Path:
    """The checkpoint with every linear of its blocks rounded, dense."""
    directory.mkdir()
    for path in source.iterdir():
        (directory / path.name).write_bytes(path.read_bytes())
    tensors = load_file(directory / "model.safetensors")
    format = Format.parse(f"int{bits}:g32:sym")
    for name, value in tensors.items():
        if value.dim() == 2 and ".layers." in name and "norm" not in name:
            tensors[name] = quantize(value.float(), format).dequantize()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("llama") / "base", num_hidden_layers=3)


@pytest.fixture(scope="session")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = FAMILIES["mixtral"].config
    config.vocab_size = 320
    directory = save(build(config), tmp_path_factory.mktemp("mixtral"))
    tokenizer().save_pretrained(directory)
    return directory


def question_of(model: Model, folder: Path) -> Question:
    text = write_text(folder / "text.txt", words=200)
    evaluation = evaluate_set(str(text), model.tokenizer(), window=24, tokens=240)
    return ask(model, evaluation, COMPUTING, folder / "cache")
