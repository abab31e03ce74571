"""The codes of finished blocks in files of their own, for what tunes the model afterwards."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from subeight.formats import Format, QTensor, Sparse, Thin
from subeight.models.read.safetensors import index_file
from subeight.records.files import atomic_path

PARTS = ("codes", "scales", "zeros", "global_scale")
SPARSE = ("pointers", "columns", "values")
THIN = ("left", "right")
ALL = (*PARTS, *SPARSE, *THIN)


def keep_codes(path: Path, codes: Mapping[str, QTensor]) -> None:
    """Writes the parts of every weight, whole or not at all."""
    parts = {f"{name}/{part}": value for name, weight in codes.items() for part, value in parts_of(weight).items()}
    keep_tensors(path, parts)


def kept_codes(path: Path, formats: Mapping[str, Format]) -> dict[str, QTensor]:
    """The weights that `keep_codes` wrote, of the linears named in `formats` that are there."""
    stored = index_file(path)
    found = {}
    for name, format in formats.items():
        if f"{name}/codes" in stored:
            parts = {part: stored[f"{name}/{part}"].read() for part in ALL if f"{name}/{part}" in stored}
            found[name] = weight_of(format, parts)
    return found


def parts_of(weight: QTensor) -> dict[str, Tensor]:
    """Every tensor of a weight, as the program has it."""
    own: dict[str, Tensor | None] = {part: getattr(weight, part) for part in PARTS}
    sparse = {} if weight.sparse is None else {part: getattr(weight.sparse, part) for part in SPARSE}
    thin = {} if weight.thin is None else {part: getattr(weight.thin, part) for part in THIN}
    return {part: value for part, value in {**own, **sparse, **thin}.items() if value is not None}


def weight_of(format: Format, parts: Mapping[str, Tensor]) -> QTensor:
    """The weight that `parts_of` took apart."""
    codes = parts["codes"]
    sparse = Sparse(**{part: parts[part] for part in SPARSE}) if SPARSE[0] in parts else None
    thin = Thin(**{part: parts[part] for part in THIN}) if THIN[0] in parts else None
    own = {part: parts[part] for part in PARTS if part in parts}
    return QTensor(format, (codes.shape[0], codes.shape[1]), **own, sparse=sparse, thin=thin)


def keep_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors into one file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as partial:
        save_file({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, partial)


def kept_tensors(path: Path) -> dict[str, Tensor] | None:
    """What `keep_tensors` wrote; None where there is nothing."""
    return {name: value.read() for name, value in index_file(path).items()} if path.is_file() else None
