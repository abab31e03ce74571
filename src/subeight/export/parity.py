"""Whether what was written computes what was measured: loaded by plain transformers, without Subeight."""

import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from subeight.errors import OutputError, ParityError

# Runs with -I: neither the working directory nor PYTHON* variables reach it. It must not import subeight.
_PROGRAM = """
import sys
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

directory, given, result, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
model, report = AutoModelForCausalLM.from_pretrained(
    directory, dtype=torch.float32, local_files_only=True, trust_remote_code=False, output_loading_info=True
)
for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
    if report.get(kind):
        print(f"{kind}: {sorted(map(str, report[kind]))[:5]}", file=sys.stderr)
        sys.exit(3)
model.eval()
for parameter in model.parameters():  # packed experts stay in the scales' type, whatever was asked for
    if parameter.dtype in (torch.bfloat16, torch.float16):
        parameter.data = parameter.data.float()
ids = load_file(given)["ids"]
with torch.inference_mode():
    logits = torch.cat([model(input_ids=row[None], use_cache=False).logits for row in ids])
save_file({"logits": logits.float().contiguous()}, result)
if any(name.split(".")[0] == "subeight" for name in sys.modules):
    sys.exit("subeight was imported")
"""


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
    """Compares the checkpoint's logits with those that were measured, in float32.

    `token_ids` is [sequences, length], `expected_logits` [sequences, length, vocabulary], of a model that holds the
    exporter's `as_loaded` weights. The process that loads the checkpoint is fresh and does not know Subeight.

    Raises:
        ParityError: transformers cannot load it, misses a tensor or finds one too many, or a logit differs by more
            than `bound`. The directory is renamed to `<directory>.failed-parity`, so that it does not pass for good.
    """
    path = Path(directory)
    if not path.is_dir():
        raise OutputError(f"{path} is no directory, so there is nothing to compare; write the checkpoint first.")
    ids = token_ids if token_ids.ndim == 2 else token_ids[None]
    expected = expected_logits if expected_logits.ndim == 3 else expected_logits[None]
    try:
        found = _logits(path, ids, threads or torch.get_num_threads(), timeout)
    except ParityError as error:
        raise ParityError(f"{error} It was renamed to {_set_aside(path)}.") from error
    if found.shape != expected.shape:
        raise ParityError(
            f"{path} gives logits of the shape {list(found.shape)}, but {list(expected.shape)} was measured; it was "
            f"renamed to {_set_aside(path)}."
        )
    difference = (found - expected.to(found)).abs()
    worst = float(difference.max()) if bool(torch.isfinite(difference).all()) else float("inf")
    if worst > bound:
        raise ParityError(
            f"{path}, loaded by plain transformers, gives logits that differ by up to {worst:.3g} from what was "
            f"measured, above the bound of {bound:.3g}; it was renamed to {_set_aside(path)}."
        )
    return Parity(max_abs=worst, bound=bound, tokens=ids.numel(), compared=difference.numel())


def _logits(path: Path, ids: Tensor, threads: int, timeout: float) -> Tensor:
    with tempfile.TemporaryDirectory(prefix="parity-") as scratch:
        given, result = Path(scratch) / "ids.safetensors", Path(scratch) / "logits.safetensors"
        save_file({"ids": ids.to(torch.int64).cpu().contiguous()}, given)
        arguments = [str(path.resolve()), str(given), str(result), str(threads)]
        command = [sys.executable, "-I", "-c", _PROGRAM, *arguments]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
        try:
            done = subprocess.run(
                command, env=environment, cwd=scratch, capture_output=True, text=True, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise ParityError(f"{path} was not loaded and run within {timeout:.0f} seconds.") from error
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise ParityError(f"Plain transformers could not load {path} whole: {last}.")
        return load_file(result)["logits"]


def _set_aside(path: Path) -> Path:
    target = path.with_name(f"{path.name}.failed-parity")
    number = 2
    while target.exists():
        target = path.with_name(f"{path.name}.failed-parity-{number}")
        number += 1
    return path.rename(target)
