"""Writing checkpoints: one file per target, and the parity check of what was written."""

from subeight.errors import OutputError
from subeight.export.checkpoint import Exporter, ShardWriter
from subeight.export.compressed_tensors import CompressedTensors
from subeight.export.dense import Dense
from subeight.export.gguf import TARGET as GGUF
from subeight.export.gguf import require_gguf, write_gguf
from subeight.export.own import Own
from subeight.export.parity import Parity, check

__all__ = [
    "GGUF",
    "TARGETS",
    "Exporter",
    "Parity",
    "ShardWriter",
    "check",
    "exporter_for",
    "require_gguf",
    "write_gguf",
]

TARGETS: dict[str, Exporter] = {target.name: target for target in (CompressedTensors(), Own(), Dense())}


def exporter_for(target: str) -> Exporter:
    """The exporter of a checkpoint of shards that `--to` names; a GGUF file, which is one file, has `write_gguf`."""
    if target not in TARGETS:
        raise OutputError(f"{target!r} is not a target of export; give one of {', '.join([*TARGETS, GGUF])}.")
    return TARGETS[target]
