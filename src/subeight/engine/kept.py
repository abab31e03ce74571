"""The codes of finished blocks in files of their own, for what tunes the model afterwards."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from subeight.formats import Format, QTensor
from subeight.models.read.safetensors import index_file
from subeight.records.files import atomic_path

PARTS = ("codes", "scales", "zeros", "global_scale")


def keep_codes(path: Path, codes: Mapping[str, QTensor]) -> None:
    """Writes the parts of every weight, whole or not at all."""
    parts = {f"{name}/{part}": getattr(weight, part) for name, weight in codes.items() for part in PARTS}
    keep_tensors(path, {name: value for name, value in parts.items() if value is not None})


def kept_codes(path: Path, formats: Mapping[str, Format]) -> dict[str, QTensor]:
    """The weights that `keep_codes` wrote, of the linears named in `formats` that are there."""
    stored = index_file(path)
    found = {}
    for name, format in formats.items():
        if f"{name}/codes" in stored:
            parts = {part: stored[f"{name}/{part}"].read() for part in PARTS if f"{name}/{part}" in stored}
            codes = parts["codes"]
            found[name] = QTensor(format, (codes.shape[0], codes.shape[1]), **parts)
    return found


def keep_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors into one file, whole or not at all."""
    path.parent.mkdir(exist_ok=True)
    with atomic_path(path) as partial:
        save_file({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, partial)


def kept_tensors(path: Path) -> dict[str, Tensor] | None:
    """What `keep_tensors` wrote; None where there is nothing."""
    return {name: value.read() for name, value in index_file(path).items()} if path.is_file() else None
