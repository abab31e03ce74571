"""How large a stored model's linears are, in bits per weight, counted from what is stored."""

from dataclasses import dataclass

from subeight.models.linear_info import LinearInfo
from subeight.models.model import Model
from subeight.models.weights import GgufWeights


@dataclass(frozen=True)
class Footprint:
    """Stored bytes of all linears of the blocks, and over their weight count."""

    bytes: int
    weights: int

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.bytes / self.weights


def footprint(model: Model) -> Footprint:
    """The footprint of a checkpoint, quantized or not; scales, zero points and kept linears are counted."""
    size = count = 0
    for linear in model.linears:
        if linear.block is None:
            continue
        count += linear.count
        size += stored_bytes(model, linear)
    return Footprint(size, count)


def stored_bytes(model: Model, linear: LinearInfo) -> int:
    """The bytes that one linear takes in the checkpoint."""
    if model.codes is not None and linear.name in model.codes:
        return model.codes.nbytes(linear.name)
    if isinstance(model.weights, GgufWeights):
        found = model.weights.nbytes(f"{linear.name}.weight")
        if found is not None:
            return found
    return linear.count * linear.dtype.itemsize
