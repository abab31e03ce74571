"""Which linears of a GGUF file are quantized, in which of ggml's types, and in how many bytes. Their codes are ggml's
own and not ours, so that every weight is read dequantized.
"""

from collections.abc import Collection

from gguf import GGMLQuantizationType
from torch import Tensor

from subeight.models.read.gguf import GgufTensors
from subeight.models.read.reader import CodeReader

_PLAIN = {"F64", "F32", "F16", "BF16", "I8", "I16", "I32", "I64"}


class GgufReader(CodeReader):
    """The quantized linears and embeddings of one GGUF file; `transposed` names the modules stored as [in, out]."""

    method = "gguf"
    parts = ("weight",)
    marks = ()

    def __init__(self, tensors: GgufTensors, transposed: Collection[str] = ()) -> None:
        super().__init__({}, {})
        self._tensors = tensors
        self._transposed = frozenset(transposed)

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        """The quantized matrices; experts, which the file fuses, are not among them."""
        found = (name for name in self._tensors.names() if name.endswith(".weight"))
        quantized = (name for name in found if self._tensors.kind(name).name not in _PLAIN)
        return tuple(sorted(n.removesuffix(".weight") for n in quantized if len(self._tensors.shape(n)) == 2))

    def shape(self, name: str) -> tuple[int, int]:
        rows, width = self._tensors.shape(f"{name}.weight")
        return rows, width

    def words(self, name: str) -> str:
        return f"{ggml_word(self._tensors.kind(f'{name}.weight'))} (gguf)"

    def linear(self, name: str) -> None:  # noqa: ARG002
        return None

    def dense(self, name: str) -> Tensor:
        weight = self._tensors.read(f"{name}.weight")
        return weight.T.contiguous() if name in self._transposed else weight

    def nbytes(self, name: str) -> int:
        return self._tensors.nbytes(f"{name}.weight")


def ggml_word(kind: GGMLQuantizationType) -> str:
    """As llama.cpp writes a type: `q4_K`, `q8_0`, `iq4_xs`."""
    word = kind.name.lower()
    return f"{word[:-1]}K" if word.endswith("_k") else word
