"""Random quantized linears as codes, and stored tensors that live in memory."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class InMemory:
    """A stored tensor without a file."""

    value: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.value.dtype

    def read(self) -> Tensor:
        return self.value


@dataclass(frozen=True)
class Linear:
    """Codes [out, in] from 0 up, zero points and scales [out, groups]."""

    codes: np.ndarray
    zeros: np.ndarray
    scales: np.ndarray


def linear(rows: int, width: int, bits: int, groups: int, *, seed: int = 0, symmetric: bool = False) -> Linear:
    draw = np.random.default_rng(seed)
    codes = draw.integers(0, 2**bits, (rows, width))
    zeros = draw.integers(0, 2**bits, (rows, groups))
    if symmetric:
        zeros = np.full_like(zeros, 2 ** (bits - 1))
    return Linear(codes, zeros, draw.uniform(0.01, 0.1, (rows, groups)).astype(np.float16))


def stored(parts: Mapping[str, np.ndarray | Tensor], name: str = "model.up") -> dict[str, InMemory]:
    """These parts of one linear as tensors of a checkpoint."""
    tensors = {key: value if isinstance(value, Tensor) else torch.from_numpy(value) for key, value in parts.items()}
    return {f"{name}.{key}": InMemory(value) for key, value in tensors.items()}
