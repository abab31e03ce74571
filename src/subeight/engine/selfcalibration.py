"""Calibration text that the baseline writes itself (`self`): sampled token by token at temperature 1 from a seed."""

import time

import torch

from subeight.errors import TextError
from subeight.evals.passes import Computing
from subeight.models.model import Model
from subeight.models.streamed import writer_of
from subeight.records.progress import progress
from subeight.text import Calibration, CalibrationSpec

LONGEST_SECONDS = 600.0


def sample_self(model: Model, spec: CalibrationSpec, computing: Computing, *, yes: bool = False) -> Calibration:
    """`spec.sequences` windows of `spec.length` tokens, each begun with the token that begins texts.

    Raises:
        TextError: it would take longer than ten minutes (measured on the first tokens) and `yes` was not said.
    """
    writer = writer_of(model, computing.dtype, computing.device, computing.room)
    config = model.config.get_text_config(decoder=True)
    first = config.bos_token_id if config.bos_token_id is not None else (config.eos_token_id or 0)
    first = first[0] if isinstance(first, list) else first
    generator = torch.Generator().manual_seed(spec.seed)
    ids = torch.full((spec.sequences, 1), first, dtype=torch.long)
    steps = writer.sample(ids, generator)
    began = time.monotonic()
    found = [ids]
    with progress(spec.length - 1, "Sampling calibration text", "tokens", quiet=computing.quiet) as advance:
        for count, token in enumerate(steps, 1):
            found.append(token)
            if count == 8 and not yes:
                _require_affordable((time.monotonic() - began) / count * (spec.length - 1))
            advance()
            if count == spec.length - 1:
                break
    return Calibration.of(torch.cat(found, 1), "self", spec.seed, ["self"] * spec.sequences)


def _require_affordable(seconds: float) -> None:
    if seconds > LONGEST_SECONDS:
        raise TextError(
            f"Sampling the calibration text from the model would take about {seconds / 60:.0f} minutes here; say --yes "
            "if that is meant, ask for fewer or shorter sequences, or give another --calibration."
        )
