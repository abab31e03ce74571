"""Checkpoints in the layouts of AutoAWQ (quant_method `awq`), of 4 bits with zero points.

gemm: `qweight` int32 [in, out / 8] and `qzeros` int32 [groups, out / 8], eight columns to a word in the order
0 2 4 6 1 3 5 7; `scales` [groups, out]. gemv: `qweight` int32 [out, in / 8] in natural order, `qzeros` and `scales`
[out, groups], padded to whole words. A weight is (code - zero) * scale.
"""

from functools import cached_property
from math import ceil

import torch
from torch import Tensor

from subeight.errors import ModelError
from subeight.formats import QTensor, unpack
from subeight.models.read.gptq import IntScheme, int_scheme, int_words_of, one_of
from subeight.models.read.reader import CodeReader, int_format, int_words, require_parts

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the column that each nibble of a word holds, from the lowest
_PER_WORD = 8


class AwqReader(CodeReader):
    """Linears of a checkpoint of AutoAWQ."""

    method = "awq"
    parts = ("qweight", "qzeros", "scales")
    marks = ("qweight",)

    @cached_property
    def layout(self) -> str:
        return one_of(self.config, ("version", "checkpoint_format", "format"), "gemm", ("gemm", "gemv"))

    def scheme(self, name: str) -> IntScheme:
        """Group and bits, which AutoAWQ has once for all linears."""
        config = self.config
        bits = config.get("bits", config.get("w_bit", 4))
        group = config.get("group_size", config.get("q_group_size", 128))
        if bits != 4:
            raise ModelError(f"{name} is said to have {bits} bits in AutoAWQ's layout, which has 4.")
        return int_scheme(name, {"bits": bits, "group_size": group, "sym": not config.get("zero_point", True)})

    def shape(self, name: str) -> tuple[int, int]:
        first, second = self.part_shape(name, "qweight")
        return (second * _PER_WORD, first) if self.layout == "gemm" else (first, second * _PER_WORD)

    def words(self, name: str) -> str:
        scheme = self.scheme(name)
        return int_words(scheme.bits, scheme.group, scheme.symmetric, (self.method,))

    def linear(self, name: str) -> QTensor:
        codes, scales, zeros = self._gemm(name) if self.layout == "gemm" else self._gemv(name)
        scheme = self.scheme(name)
        symmetric = scheme.symmetric and not bool(zeros.any())
        return QTensor(
            format=int_format(scheme.bits, scheme.group, symmetric, scales.dtype),
            shape=self.shape(name),
            codes=codes,
            scales=scales.float(),
            zeros=None if symmetric else zeros,
        )

    def _gemm(self, name: str) -> tuple[Tensor, Tensor, Tensor]:
        """Codes [out, in], scales and zero points [out, groups]."""
        rows, width = self.shape(name)
        groups = self.scheme(name).groups(width)
        expected = {"scales": (groups, rows), "qzeros": (groups, rows // _PER_WORD)}
        require_parts(name, {part: self.part_shape(name, part) for part in expected}, expected)
        codes = in_order(unpack(int_words_of(self, name, "qweight"), 4, rows)).T.contiguous()
        zeros = in_order(unpack(int_words_of(self, name, "qzeros"), 4, rows)).T.contiguous()
        return codes, self.part(name, "scales").T.contiguous(), zeros

    def _gemv(self, name: str) -> tuple[Tensor, Tensor, Tensor]:
        rows, width = self.shape(name)
        scheme = self.scheme(name)
        groups = scheme.groups(width)
        padded = gemv_words(width, scheme.group)
        expected = {"scales": (rows, padded * _PER_WORD), "qzeros": (rows, padded)}
        require_parts(name, {part: self.part_shape(name, part) for part in expected}, expected)
        codes = unpack(int_words_of(self, name, "qweight"), 4, width)
        zeros = unpack(int_words_of(self, name, "qzeros"), 4, padded * _PER_WORD)[:, :groups].contiguous()
        return codes, self.part(name, "scales")[:, :groups].contiguous(), zeros


def in_order(codes: Tensor) -> Tensor:
    """Codes [rows, columns] out of words in AWQ's order, column by column."""
    place = torch.tensor([ORDER.index(column) for column in range(_PER_WORD)])
    return codes.unflatten(1, (-1, _PER_WORD))[..., place].flatten(1)


def gemv_words(width: int, group: int) -> int:
    """How many words of zero points a row has in the gemv layout, which pads them for its kernel."""
    multiple = {64: 2, 32: 4, 16: 8}.get(group, 1)
    groups = 1 if group == -1 else width // group
    return ceil(ceil(groups / _PER_WORD) / multiple) * multiple
