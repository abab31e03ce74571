"""Whether what was written computes what was measured: loaded by plain transformers, without Subeight."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from subeight.errors import OutputError, ParityError
from subeight.export.packed import PROBLEMS, Checkpoint, PackedRunner
from subeight.models.read.own import METHOD

GGUF_SUFFIX = ".gguf"


@dataclass(frozen=True)
class Parity:
    """How far the loaded checkpoint is from what was measured; the record's `parity`."""

    max_abs: float
    bound: float
    tokens: int
    compared: int  # logits

    def to_dict(self) -> dict[str, Any]:
        """As it stands in a record."""
        return asdict(self)


def check(
    directory: Path | str,
    token_ids: Tensor,
    expected_logits: Tensor,
    bound: float,
    *,
    threads: int | None = None,
    timeout: float = 1800,
) -> Parity:
    """Compares the logits of a checkpoint, a directory or a GGUF file, with those that were measured, in float32.

    `token_ids` is [sequences, length], `expected_logits` [sequences, length, vocabulary], of a model that holds the
    exporter's `as_loaded` weights. The process that loads the checkpoint is fresh and does not know Subeight.

    Raises:
        ParityError: transformers cannot load it, misses a tensor or finds one too many, or a logit differs by more
            than `bound`. It is renamed to `<name>.failed-parity`, so that it does not pass for good.
    """
    path = Path(directory)
    if not path.is_dir() and path.suffix != GGUF_SUFFIX:
        raise OutputError(f"{path} is no directory, so there is nothing to compare; write the checkpoint first.")
    ids = token_ids if token_ids.ndim == 2 else token_ids[None]
    expected = expected_logits if expected_logits.ndim == 3 else expected_logits[None]
    try:
        found = _logits(path, ids, threads or torch.get_num_threads(), timeout)
    except ParityError as error:
        raise ParityError(f"{error} It was renamed to {set_aside(path)}.") from error
    if found.shape != expected.shape:
        raise ParityError(
            f"{path} gives logits of the shape {list(found.shape)}, but {list(expected.shape)} was measured; it was "
            f"renamed to {set_aside(path)}."
        )
    difference = (found - expected.to(found)).abs()
    worst = float(difference.max()) if bool(torch.isfinite(difference).all()) else float("inf")
    if worst > bound:
        raise ParityError(
            f"{path}, loaded by plain transformers, gives logits that differ by up to {worst:.3g} from what was "
            f"measured, above the bound of {bound:.3g}; it was renamed to {set_aside(path)}."
        )
    return Parity(max_abs=worst, bound=bound, tokens=ids.numel(), compared=difference.numel())


def _logits(path: Path, ids: Tensor, threads: int, timeout: float) -> Tensor:
    """The checkpoint's logits [sequences, length, vocabulary], loaded whole, where nothing of the user's is seen."""
    own = _is_own(path)
    everywhere = torch.arange(ids.shape[1])
    with PackedRunner(isolated=True, timeout=timeout) as runner:
        try:
            report = runner.load(_checkpoint(path, own), threads=threads)
            found = runner.logits(list(ids), [everywhere] * len(ids))
            known = runner.release()
        except ParityError as error:
            raise ParityError(f"{path} cannot be checked: {error}.") from error
    for kind in PROBLEMS:
        if report[kind]:
            raise ParityError(f"Plain transformers could not load {path} whole: {kind}: {report[kind][:5]}.")
    if known and not own:
        raise ParityError(f"{path} needs Subeight: it was imported by what plain transformers loaded.")
    return torch.stack(found)


def _checkpoint(path: Path, own: bool) -> Checkpoint:
    return Checkpoint(path, own=own) if path.is_dir() else Checkpoint(path.parent, gguf=path.name)


def _is_own(path: Path) -> bool:
    about = path / "config.json"
    config = json.loads(about.read_text(encoding="utf-8")) if about.is_file() else {}
    return (config.get("quantization_config") or {}).get("quant_method") == METHOD


def set_aside(path: Path) -> Path:
    """Renames what failed; returns its new path."""
    target = path.with_name(f"{path.name}.failed-parity")
    number = 2
    while target.exists():
        target = path.with_name(f"{path.name}.failed-parity-{number}")
        number += 1
    return path.rename(target)
