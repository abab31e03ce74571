"""Writing checkpoints: one file per target, and the parity check of what was written."""

from subeight.errors import OutputError
from subeight.export.checkpoint import Exporter, ShardWriter
from subeight.export.compressed_tensors import CompressedTensors
from subeight.export.dense import Dense
from subeight.export.own import Own
from subeight.export.parity import Parity, check

__all__ = ["TARGETS", "Exporter", "Parity", "ShardWriter", "check", "exporter_for"]

TARGETS: dict[str, Exporter] = {target.name: target for target in (CompressedTensors(), Own(), Dense())}


def exporter_for(target: str) -> Exporter:
    """The exporter that `--to` names."""
    if target not in TARGETS:
        raise OutputError(f"{target!r} is not a target of export; give one of {', '.join(TARGETS)}.")
    return TARGETS[target]
