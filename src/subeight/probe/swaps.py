"""What of a candidate is replaced by the baseline, brought into the candidate's gauge: the one variable of a probe."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Swaps:
    """Places that are the baseline's instead of the candidate's.

    `weights` are linears (checkpoint names, embeddings and head included), `inputs` linears whose input is left
    unrounded, `parameters` full names of norms, biases and other vectors. `given` puts another weight [out, in] in
    a linear's place.
    """

    weights: frozenset[str] = frozenset()
    inputs: frozenset[str] = frozenset()
    parameters: frozenset[str] = frozenset()
    given: Mapping[str, Tensor] = field(default_factory=dict)

    def __or__(self, other: "Swaps") -> "Swaps":
        return Swaps(
            self.weights | other.weights,
            self.inputs | other.inputs,
            self.parameters | other.parameters,
            {**self.given, **other.given},
        )

    def __bool__(self) -> bool:
        return bool(self.weights or self.inputs or self.parameters or self.given)

    @property
    def names(self) -> frozenset[str]:
        """Every place that is touched."""
        return self.weights | self.inputs | self.parameters | frozenset(self.given)
