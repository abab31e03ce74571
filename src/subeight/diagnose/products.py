"""Where a packed model computes something else than its dequantized twin: linear by linear, on the same inputs.

Every linear's output in the packed model is compared with the product of its own input and our weight, in float64, so
an error upstream does not count twice; then the weight that the packed model holds, with ours.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from subeight.export.packed import PackedRunner
from subeight.formats import fake_quantize
from subeight.models.block import Block
from subeight.models.linear_info import LinearInfo
from subeight.models.model import Model
from subeight.models.shell import Shell
from subeight.models.structure import LinearView

ERRS = 1e-3  # of the output's norm; float32 sums in another order make about 1e-6
ERRS_ROUNDED = 3e-2  # where inputs are rounded: a number between two codes may fall on either side
_TOKENS = 64


@dataclass(frozen=True)
class Product:
    """One linear of the packed model: how far its output and its weight are from ours, relative.

    `error` is None where no output was seen (fused experts), `held` where the model holds no plain weight.
    """

    name: str
    shape: tuple[int, int]
    error: float | None
    held: float | None
    bound: float

    @property
    def errs(self) -> bool:
        return not ((self.error or 0.0) <= self.bound and (self.error is not None or (self.held or 0.0) <= ERRS))

    @property
    def is_unpacked_wrong(self) -> bool:
        """Whether the weight that is held explains it."""
        return self.held is not None and not self.held <= ERRS


def products(runner: PackedRunner, model: Model, ids: Tensor) -> list[Product]:
    """Every linear of the blocks and the head, as the loaded packed model computes them for one row of ids."""
    listed = list(_linears(model))
    modules = sorted({module for _, _, module in listed if module})
    seen = runner.products(ids[:_TOKENS], modules)
    found = []
    for info, view, module in listed:
        weight = _weight(model, info, view)
        error, bound = None, ERRS
        if module and f"{module}/in" in seen and f"{module}/out" in seen:
            error, bound = _output_error(model, info, view, weight, (seen[f"{module}/in"], seen[f"{module}/out"]))
        found.append(Product(info.name, info.shape, error, None, bound))
    return _with_held(runner, model, found, listed)


_Listed = tuple[LinearInfo, LinearView | None, str | None]


def _linears(model: Model) -> Iterator[_Listed]:
    """Each linear, its view, and the module whose input and output are its own (None: an expert's slice)."""
    for view in model.views():
        whole = view.expert is None and view.rows is None
        yield view.info, view, view.parameter.rpartition(".")[0] if whole else None
    for info in model.linears:
        if info.block is None and info.kind in ("head", "tied"):
            yield info, None, info.name


def _parameter(info: LinearInfo, view: LinearView | None) -> str:
    return f"{info.name}.weight" if view is None else view.parameter


def _weight(model: Model, info: LinearInfo, view: LinearView | None) -> Tensor:
    """Our weight [out, in], in float32."""
    value = model.weights.read(_parameter(info, view))
    return (value if view is None else view.of(value)).float()


def _output_error(
    model: Model, info: LinearInfo, view: LinearView | None, weight: Tensor, seen: tuple[Tensor, Tensor]
) -> tuple[float, float]:
    """The relative error of an output [tokens, out] for its input [tokens, in], and what is allowed."""
    given, made = seen
    rounded = model.codes.inputs(info.name) if model.codes is not None and view is not None else None
    if rounded is not None:
        given = fake_quantize(given, rounded[0], rounded[1])
    expected = given.double() @ weight.double().T
    if view is not None and view.bias is not None:
        expected += model.weights.read(view.bias).double()
    return _relative(made, expected), ERRS if rounded is None else ERRS_ROUNDED


def _with_held(
    runner: PackedRunner, model: Model, found: Sequence[Product], listed: Sequence[_Listed]
) -> list[Product]:
    """The same with the difference of the weight that the packed model holds, where an output errs or is unseen."""
    made = []
    held: dict[str, Tensor] = {}
    for product, (info, view, _) in zip(found, listed, strict=True):
        if not (product.error is None or product.errs):
            made.append(product)
            continue
        name = _parameter(info, view)
        if name not in held:  # experts share one parameter
            held = runner.weights([name])
        value = held.get(name)
        difference = None
        if value is not None:
            own = value if view is None else view.of(value)
            difference = _relative(own, _weight(model, info, view).double())
        made.append(Product(product.name, product.shape, product.error, difference, product.bound))
    return made


def plain_parameters(runner: PackedRunner, model: Model) -> dict[str, float]:
    """Relative differences of what is no linear (norms, biases, embeddings), where the packed model holds another."""
    linears = {_parameter(info, view) for info, view, _ in _linears(model)}
    skeleton = model.skeleton
    inside = [name for index in range(len(skeleton.blocks)) for name in skeleton.block_parameters(index)]
    names = [name for name in (*skeleton.shell_parameters(), *inside) if name not in linears | skeleton.tied_names]
    found = {}
    for name, value in runner.weights(names).items():
        difference = _relative(value, model.weights.read(name).double())
        if not difference <= ERRS:
            found[name] = difference
    return found


def _relative(found: Tensor, expected: Tensor) -> float:
    """The norm of the difference over the norm of what is expected; infinite where it is no number or another shape."""
    if found.shape != expected.shape:
        return float("inf")
    norm = float(expected.norm())
    error = float((found.double() - expected).norm()) / (norm or 1.0)
    return error if error == error else float("inf")


def common_shape(products: Sequence[Product]) -> tuple[int, int] | None:
    """The shape that they share, where they do."""
    shapes = {product.shape for product in products}
    return shapes.pop() if len(shapes) == 1 else None


def differing_blocks(runner: PackedRunner, model: Model, ids: Tensor) -> list[str]:
    """Names of the blocks whose output is another than our block makes of the same input."""
    row = ids[:_TOKENS]
    skeleton = model.skeleton
    names = [skeleton.block_name(index) for index in range(len(skeleton.blocks))]
    seen = runner.products(row, names)
    shell = Shell(model, torch.float32)
    found = []
    for index, name in enumerate(names):
        if f"{name}/in" not in seen or f"{name}/out" not in seen:
            continue
        block = Block(model, index, torch.float32)
        made = block(seen[f"{name}/in"][None], shell.call((1, len(row)), index))
        if not _relative(seen[f"{name}/out"], made[0].double()) <= ERRS_ROUNDED:
            found.append(name)
    return found
