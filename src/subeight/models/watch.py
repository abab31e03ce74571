"""Watching a block run: which weight multiplies which input.

`Watcher` sees every product with a parameter, however the module spells it (nn.Linear, GPT-2's Conv1D, one expert's
slice of a fused parameter), so linears are found by what they do and not by their class.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

# (function, position of the input, position of the weight, the weight is stored [in, out])
PRODUCTS: dict[Any, tuple[int, int, bool]] = {
    F.linear: (0, 1, False),
    torch.addmm: (1, 2, True),
    torch.matmul: (0, 1, True),
    torch.mm: (0, 1, True),
    Tensor.matmul: (0, 1, True),
    Tensor.__matmul__: (0, 1, True),
}


class StopForward(Exception):  # noqa: N818 - control flow, not an error
    """Raised by a watcher that has seen what it wanted."""


class Watcher(TorchFunctionMode):
    """Calls `seen(weight, input, transposed)` before every product of an input with a tensor."""

    def __init__(self, seen: Callable[[Tensor, Tensor, bool], None]) -> None:
        super().__init__()
        self._seen = seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        product = PRODUCTS.get(func)
        if product is not None and len(args) > product[1]:
            self._seen(args[product[1]], args[product[0]], product[2])
        return func(*args, **(kwargs or {}))


def identity(tensor: Tensor) -> tuple[int, int, int]:
    """What two views of one tensor share, and two different tensors that are both alive do not."""
    return (tensor.untyped_storage()._cdata, int(tensor.storage_offset()), tensor.numel())
