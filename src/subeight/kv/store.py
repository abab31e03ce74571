"""Keys or values of one layer as packed codes: appended in runs of tokens, selected and cropped without unpacking."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from subeight.formats import Format, QTensor, pack, quantize, unpack
from subeight.formats.rotation import rotate, unrotate
from subeight.kv.policy import run_of

PARTS = ("codes", "scales", "zeros")


@dataclass
class Store:
    """States [batch, heads, tokens, dim] in a format whose groups run along the tokens or, `along_tokens` false, along
    the channels.

    Parts are [batch, lines, runs, numbers]: a line is a head's channel and a run its group of tokens, or a line is a
    head and a run one token.
    """

    format: Format
    along_tokens: bool
    rotated: bool = False
    heads: int = 0
    dim: int = 0
    _parts: dict[str, Tensor] = field(default_factory=dict)

    @property
    def run(self) -> int:
        """How many tokens are appended together at least."""
        return run_of(self.format) if self.along_tokens else 1

    @property
    def tokens(self) -> int:
        return self.run * self._parts["codes"].shape[2] if self._parts else 0

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self._parts.values())

    def append(self, states: Float[Tensor, "batch heads tokens dim"]) -> None:
        """Rounds and packs; tokens are whole runs."""
        batch, self.heads, count, self.dim = states.shape
        states = rotate(states) if self.rotated else states.float()
        if self.along_tokens:
            shaped = states.transpose(2, 3).reshape(-1, self.run)  # [batch * heads * dim * runs, run]
            lines, runs = self.heads * self.dim, count // self.run
        else:
            shaped, lines, runs = states.reshape(-1, self.dim), self.heads, count
        weight = quantize(shaped, self.format)
        for name, part in zip(PARTS, self._packed(weight), strict=True):
            if part is not None:
                new = part.reshape(batch, lines, runs, -1)
                self._parts[name] = torch.cat([self._parts[name], new], 2) if name in self._parts else new

    def states(self, dtype: torch.dtype) -> Float[Tensor, "batch heads tokens dim"]:
        """All that is stored, dequantized."""
        batch, count = self._parts["codes"].shape[0], self.tokens
        found = self._weight().dequantize()
        if self.along_tokens:
            found = found.reshape(batch, self.heads, self.dim, count).transpose(2, 3)
        else:
            found = found.reshape(batch, self.heads, count, self.dim)
        return (unrotate(found) if self.rotated else found).to(dtype)

    def select(self, rows: Tensor) -> None:
        """Keeps these sequences of the batch, in this order."""
        self._parts = {name: part.index_select(0, rows.to(part.device)) for name, part in self._parts.items()}

    def keep(self, runs: int) -> None:
        """Keeps the first runs."""
        self._slice(slice(0, runs))

    def drop(self, runs: int) -> None:
        """Forgets the first runs."""
        self._slice(slice(runs, None))

    def _slice(self, runs: slice) -> None:
        self._parts = {name: part[:, :, runs].contiguous() for name, part in self._parts.items()}

    def _packed(self, weight: QTensor) -> tuple[Tensor, Tensor, Tensor | None]:
        bits = self.format.code_bits
        codes = weight.codes if bits == 8 else pack(weight.codes, bits)
        return codes, weight.scales.to(self.format.scale_dtype), weight.zeros

    def _weight(self) -> QTensor:
        """Everything as one matrix, a run in each row."""
        codes, scales, zeros = (self._parts.get(name) for name in PARTS)
        assert codes is not None
        assert scales is not None
        rows, width = codes.shape[:3].numel(), self.run if self.along_tokens else self.dim
        bits = self.format.code_bits
        flat = codes.reshape(rows, -1)
        if bits < 8:
            flat = unpack(flat, bits, width, signed=self.format.grid.startswith("int"))
        zero = None if zeros is None else zeros.reshape(rows, -1)
        return QTensor(self.format, (rows, width), flat, scales.reshape(rows, -1).float(), zero)
