"""Memory: run directories, records with their five coordinates, the stack's fingerprint. Knows no torch."""

from subeight.records.coordinates import (
    NAMES,
    UNKNOWN,
    Coordinates,
    differing,
    fingerprint,
    require_comparable,
)
from subeight.records.disk import human_bytes, require_space
from subeight.records.files import atomic_path, atomic_write
from subeight.records.memory import peak_rss_bytes
from subeight.records.progress import progress
from subeight.records.record import SCHEMA, Record
from subeight.records.run import Run, default_directory
from subeight.records.stack import Stack, difference

__all__ = [
    "NAMES",
    "SCHEMA",
    "UNKNOWN",
    "Coordinates",
    "Record",
    "Run",
    "Stack",
    "atomic_path",
    "atomic_write",
    "default_directory",
    "difference",
    "differing",
    "fingerprint",
    "human_bytes",
    "peak_rss_bytes",
    "progress",
    "require_comparable",
    "require_space",
]
