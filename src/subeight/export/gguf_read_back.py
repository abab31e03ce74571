"""Whether a GGUF file holds, bit for bit, the weights that it was written from, by our own reader of such files."""

from pathlib import Path

import torch
from torch import Tensor

from subeight.errors import ParityError
from subeight.export.gguf import Placed
from subeight.export.gguf_architectures import family_of
from subeight.models.model import Model
from subeight.models.read.gguf import GgufTensors


def require_same_weights(path: Path, model: Model, placed: list[Placed]) -> int:
    """Compares every parameter of `model` with the file's, one at a time; returns how many numbers were compared.

    Raises:
        ParityError: a parameter is missing, or a number differs.
    """
    names = list(model.skeleton.model.state_dict())
    family = family_of(model.config, names)
    tensors = GgufTensors(path, model.skeleton.model, model.config.to_dict())
    compared = 0
    for tensor in placed:
        if not tensor.parameter:
            continue
        expected = _expected(model, tensor.parameter)
        if family.offset and tensor.parameter.endswith("norm.weight"):
            expected = (expected + 1) - 1  # llama.cpp stores the sum, in float32
        found = tensors.read(tensor.parameter)
        if not torch.equal(found, expected):
            wrong = int((found != expected).sum()) if found.shape == expected.shape else expected.numel()
            raise ParityError(f"{path} holds {wrong} other numbers in {tensor.name} than {tensor.parameter} has.")
        compared += expected.numel()
    return compared


def _expected(model: Model, parameter: str) -> Tensor:
    name = parameter.removesuffix(".weight")
    if model.codes is not None and name in model.codes:
        return model.codes.read(name).dequantize()
    return model.weights.read(parameter).float()
