"""A linear that runs its packed weight."""

from __future__ import annotations

import itertools
from typing import Any
from weakref import WeakValueDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from subeight.formats import Format, QTensor, Scales
from subeight.kernels.runners import Ask, Runner
from subeight.kernels.table import choose

_RUNNERS: WeakValueDictionary[int, Runner] = WeakValueDictionary()
_NUMBERS = itertools.count()


@torch.library.custom_op("subeight::product", mutates_args=())
def _product(rows: torch.Tensor, runner: int, out_features: int) -> torch.Tensor:  # noqa: ARG001 - the shape below
    """A runner as an operator, for torch.compile, which cannot look into its C++."""
    return _RUNNERS[runner](rows)


@_product.register_fake
def _shape_of_product(rows: torch.Tensor, runner: int, out_features: int) -> torch.Tensor:  # noqa: ARG001 - any
    return rows.new_empty(rows.shape[0], out_features)


class QuantLinear(nn.Module):
    """y = x W^T + b with W as its codes, by the kernel that the table chooses; inputs are rounded as the format says.

    What is set apart is multiplied beside it in the type of the rows. The weight is no parameter: it is neither trained
    nor saved from here.
    """

    def __init__(
        self,
        weight: QTensor,
        bias: Float[Tensor, " out"] | None = None,
        inputs: Format | None = None,
        scales: Scales | None = None,
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.ask = Ask(weight.format, inputs, weight.shape, weight.codes.device)
        self.choice = choose(self.ask)
        self.runner = self.choice.hold(weight.codes_alone(), self.ask, scales)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self._values = None if weight.sparse is None else _placed(weight)
        self._thin = weight.thin
        self._number = _known(self.runner)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._number = _known(self.runner)  # a copy may have a runner of its own

    def forward(self, x: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
        rows = x.reshape(-1, self.in_features)
        compiling = torch.compiler.is_compiling()
        y = _product(rows, self._number, self.out_features) if compiling else self.runner(rows)
        if self._values is not None:
            y += torch.sparse.mm(self._values, rows.float().T).T.to(y.dtype)
        if self._thin is not None:
            y += (rows @ self._thin.right.T.to(x.dtype)) @ self._thin.left.T.to(x.dtype)
        if self.bias is not None:
            y += self.bias
        return y.view(*x.shape[:-1], self.out_features)

    @property
    def nbytes(self) -> int:
        """Bytes of the weight as it is held."""
        values = 0 if self._values is None else self._values.values().nbytes + self._values.indices().nbytes
        thin = 0 if self._thin is None else self._thin.left.nbytes + self._thin.right.nbytes
        return self.runner.nbytes + values + thin

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self.ask.weights}, {self.choice.name}"


def _known(runner: Runner) -> int:
    number = next(_NUMBERS)
    _RUNNERS[number] = runner
    return number


def _placed(weight: QTensor) -> Tensor:
    """The values set apart as a sparse matrix [out, in], float32."""
    assert weight.sparse is not None
    sparse = weight.sparse
    rows = torch.arange(weight.shape[0]).repeat_interleave(sparse.pointers.diff().long().cpu()).to(sparse.values.device)
    places = torch.stack([rows, sparse.columns.long()])
    return torch.sparse_coo_tensor(places, sparse.values.float(), weight.shape, check_invariants=True).coalesce()
