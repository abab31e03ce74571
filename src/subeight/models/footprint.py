"""How large a stored model's linears are, in bits per weight, counted from what is stored."""

from dataclasses import dataclass

from subeight.models.model import Model


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
        if model.codes is not None and linear.name in model.codes:
            size += model.codes.nbytes(linear.name)
        else:
            size += linear.count * linear.dtype.itemsize
    return Footprint(size, count)
