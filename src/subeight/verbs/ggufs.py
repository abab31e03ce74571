"""A GGUF file out of a quantized checkpoint, compared with it, and what a record says of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from subeight.export import write_gguf
from subeight.export.gguf import FILE, table
from subeight.formats.ggml import BITS
from subeight.models.footprint import footprint
from subeight.models.model import Model
from subeight.models.read.gguf_codes import ggml_word
from subeight.recipes import Plan
from subeight.verbs.parity import verified_gguf
from subeight.verbs.session import Session


@dataclass(frozen=True)
class GgufFile:
    """What was written: its path, its numbers, and what a user should know."""

    path: Path
    numbers: dict[str, Any]
    warnings: list[str]


def gguf_file(model: Model, plan: Plan, directory: Path, session: Session) -> GgufFile:
    """Writes `model.gguf` into the directory and compares it; raises what `write_gguf` and `verified_gguf` raise."""
    path = directory / FILE
    placed = write_gguf(model, plan.sites, path, quiet=session.options.quiet)
    parity = verified_gguf(path, model, placed, session)
    size = footprint(session.model(str(path)))
    numbers = {
        "bits_per_weight": size.bits_per_weight,
        "bytes": size.bytes,
        "file_bytes": path.stat().st_size,
        "types": table(placed),
        "parity": parity,
    }
    kinds = {tensor.parameter.removesuffix(".weight"): tensor.kind for tensor in placed}
    larger: dict[tuple[str, str], list[float]] = {}
    for site in plan.quantized:
        kind = kinds[site.linear.name]
        if BITS[kind.name] >= site.bits + 1:
            larger.setdefault((str(site.weights), ggml_word(kind)), []).append(site.bits)
    warnings = [
        f"{format} takes {BITS[word.upper()]:g} bits per weight as {word}, the smallest type of ggml that holds these "
        f"codes, instead of {min(bits):.2f}."
        for (format, word), bits in larger.items()
    ]
    return GgufFile(path, numbers, warnings)
