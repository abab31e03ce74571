"""What runs one quantized linear: each class holds a weight its own way and multiplies rows with it.

A runner gets rows as the linear reads them and returns products with the matrix of the codes; bias and what is set
apart are `QuantLinear`'s. `Twin` is the reference of all: dequantize and multiply.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from subeight.errors import KernelError
from subeight.formats import Format, QTensor, Scales
from subeight.formats.activations import fake_quantize
from subeight.formats.rotation import rotate
from subeight.kernels.inputs import rounded_codes
from subeight.kernels.native import Native, native
from subeight.kernels.products import can_pack, multiply_int8, multiply_looked_up, pack_matrix, unpack_matrix

SIDE = 192  # of the matrices by which oneDNN's int8 is tried
SLOWEST = 1e9  # operations a second: a reference does a tenth of them, vector instructions a hundredfold
ONE_BY_ONE = 16  # rows up to which reading packed codes beats dequantizing all of them first


@dataclass(frozen=True)
class Ask:
    """One linear that wants to run: how weights and inputs are stored, [out, in], and where."""

    weights: Format
    inputs: Format | None
    shape: tuple[int, int]
    device: torch.device


class Runner(Protocol):
    """Holds a weight and multiplies rows with it."""

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""

    def __call__(self, x: Float[Tensor, "rows in"]) -> Float[Tensor, "rows out"]:
        """The products, in the type of `x`."""

    def kernel(self, rows: int) -> str:
        """The name of what runs so many rows."""


class Twin:
    """Dequantizes the weight to the type of the rows, once per call, and multiplies: any format, any device."""

    def __init__(self, weight: QTensor, inputs: Format | None, scales: Scales | None) -> None:
        self._weight, self._inputs, self._scales = weight.codes_alone(), inputs, scales

    @staticmethod
    def why_not(ask: Ask) -> str | None:  # noqa: ARG004 - serves whatever is asked
        return None

    @property
    def nbytes(self) -> int:
        parts = (self._weight.codes, self._weight.scales, self._weight.zeros, self._weight.global_scale)
        return sum(part.nbytes for part in parts if part is not None)

    def kernel(self, rows: int) -> str:  # noqa: ARG002 - one for all
        return "dequantize"

    def __call__(self, x: Tensor) -> Tensor:
        if self._inputs is not None:
            x = fake_quantize(x, self._inputs, self._scales)
        return x @ self._weight.dequantize(x.dtype).T


class LookUp:
    """Our own C++ on packed codes for a few rows; for more, all of it dequantized once per call."""

    def __init__(self, weight: QTensor, inputs: Format | None, scales: Scales | None) -> None:
        self._kernels = _loaded()
        self._weight = pack_matrix(weight)
        self._rotated = weight.format.rotated
        self._inputs, self._scales = inputs, scales

    @staticmethod
    def why_not(ask: Ask) -> str | None:
        kernels = _own(ask)
        if isinstance(kernels, str):
            return kernels
        if not kernels.has_lookup:
            return "this CPU multiplies no bf16"
        if not can_pack(ask.weights, ask.shape):
            return f"it packs 2, 3, 4 and 8 bits in whole groups, not {ask.weights} of {ask.shape}"
        if ask.inputs is not None and ask.inputs.rotated != ask.weights.rotated:
            return "inputs and weights are rounded in different bases"
        return None

    @property
    def nbytes(self) -> int:
        return self._weight.nbytes

    def kernel(self, rows: int) -> str:
        return "look-up" if rows <= ONE_BY_ONE else "dequantize"

    def __call__(self, x: Tensor) -> Tensor:
        given = x.dtype
        x = rotate(x) if self._rotated else x
        if self._inputs is not None:
            x = fake_quantize(x, self._inputs.plain, self._scales)
        x = x.to(given)
        if len(x) <= ONE_BY_ONE:
            return multiply_looked_up(x, self._weight, self._kernels)
        return x @ unpack_matrix(self._weight, self._kernels).to(given).T


class Int8:
    """oneDNN's product of int8 weights, a scale per channel, with int8 inputs, per token or, fixed, per tensor."""

    def __init__(self, weight: QTensor, inputs: Format | None, scales: Scales | None) -> None:
        assert inputs is not None
        self._inputs, self._rotated = inputs, weight.format.rotated
        self._bytes = weight.codes.nbytes + 4 * weight.shape[0]
        self._weight = torch.ops.onednn.qlinear_prepack(weight.codes.contiguous(), None)
        self._scales = weight.scales.flatten().float().expand(weight.shape[0]).contiguous()
        self._zeros = torch.zeros(weight.shape[0], dtype=torch.int32)
        self._fixed = scales

    def __deepcopy__(self, memo: dict[int, Any]) -> Int8:
        return self  # torch cannot copy what oneDNN packed, and nothing here changes

    @staticmethod
    def why_not(ask: Ask) -> str | None:
        if ask.device.type != "cpu":
            return "it runs on CPUs"
        reason = _why_not_int8(ask)
        if reason is not None:
            return reason
        return None if multiplies_int8() else "oneDNN has but a slow reference of it for this CPU"

    @property
    def nbytes(self) -> int:
        return self._bytes

    def kernel(self, rows: int) -> str:  # noqa: ARG002 - one for all
        return "oneDNN int8"

    def __call__(self, x: Tensor) -> Tensor:
        turned = rotate(x) if self._rotated else x
        codes, scales = rounded_codes(turned, self._inputs.plain, self._fixed)
        if scales.numel() == 1:
            return self._product(codes, float(scales), x.dtype)
        return self._product(codes, 1.0, x.dtype).mul_(scales.to(x.dtype))

    def _product(self, codes: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
        return torch.ops.onednn.qlinear_pointwise(
            codes, scale, 0, self._weight, self._scales, self._zeros, None, 1.0, 0, dtype, "none", [], ""
        )


class OwnInt8:
    """Our own C++ for the same: inputs are rounded and multiplied in one call."""

    def __init__(self, weight: QTensor, inputs: Format | None, scales: Scales | None) -> None:
        assert inputs is not None
        self._kernels = _loaded()
        self._weight = pack_matrix(weight)
        self._inputs, self._rotated, self._fixed = inputs.plain, weight.format.rotated, scales

    @staticmethod
    def why_not(ask: Ask) -> str | None:
        kernels = _own(ask)
        if isinstance(kernels, str):
            return kernels
        if not kernels.has_int8:
            return "this CPU has no vector instructions for it"
        reason = _why_not_int8(ask)
        if reason is None and not can_pack(ask.weights, ask.shape):
            return f"it packs whole units of four columns and scales in bf16, not {ask.weights} of {ask.shape}"
        return reason

    @property
    def nbytes(self) -> int:
        return self._weight.nbytes

    def kernel(self, rows: int) -> str:  # noqa: ARG002 - one for all
        return "int8"

    def __call__(self, x: Tensor) -> Tensor:
        turned = rotate(x).to(x.dtype) if self._rotated else x
        if self._inputs.per == "token":
            return multiply_int8(turned, self._weight, None, self._kernels)
        scale = self._fixed.effective if self._fixed else rounded_codes(turned, self._inputs, None)[1]
        return multiply_int8(turned, self._weight, float(scale), self._kernels)


def _why_not_int8(ask: Ask) -> str | None:
    """Whether weights and inputs are what products of int8 with int8 take."""
    if not (ask.weights.grid == "int8" and ask.weights.symmetric and ask.weights.group is None):
        return f"weights are {ask.weights}, not symmetric int8 with a scale per channel"
    if ask.inputs is None or ask.inputs.grid != "int8" or not ask.inputs.symmetric:
        return "inputs are not symmetric int8"
    if ask.inputs.per not in ("token", "tensor"):
        return f"inputs are {ask.inputs}, not one scale per token or tensor"
    if ask.inputs.rotated != ask.weights.rotated:
        return "inputs and weights are rounded in different bases"
    return None


@cache
def multiplies_int8() -> bool:
    """Whether oneDNN multiplies int8 by vector instructions here, by the best of a few tries."""
    codes = torch.ones(SIDE, SIDE, dtype=torch.int8)
    weight = QTensor(Format.parse("int8:channel"), (SIDE, SIDE), codes, torch.ones(SIDE, 1))
    runner = Int8(weight, Format.parse("int8:token"), None)
    seconds = []
    for _ in range(4):
        began = time.perf_counter()
        runner._product(codes, 1.0, torch.bfloat16)
        seconds.append(time.perf_counter() - began)
    return 2 * SIDE**3 / min(seconds) > SLOWEST


def _own(ask: Ask) -> Native | str:
    """Our own C++, or why it does not serve there."""
    return native() if ask.device.type == "cpu" else "it runs on CPUs"


def _loaded() -> Native:
    found = native()
    if isinstance(found, str):
        raise KernelError(found)
    return found
