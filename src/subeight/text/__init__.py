"""Text to token batches: sources, chat templates, what is scored, and the hashes that fix it all."""

from subeight.text.batches import Batch, batches
from subeight.text.calibration import Calibration, CalibrationSpec, calibrate, calibrate_all, further
from subeight.text.chat import render, template_name
from subeight.text.coverage import Coverage, compare_coverage, scripts_of
from subeight.text.documents import read_documents
from subeight.text.evaluation import EvaluationSet, Sample, evaluate_set, with_answer
from subeight.text.hashing import hash_tokens
from subeight.text.rows import Document

__all__ = [
    "Batch",
    "Calibration",
    "CalibrationSpec",
    "Coverage",
    "Document",
    "EvaluationSet",
    "Sample",
    "batches",
    "calibrate",
    "calibrate_all",
    "compare_coverage",
    "evaluate_set",
    "further",
    "hash_tokens",
    "read_documents",
    "render",
    "scripts_of",
    "template_name",
    "with_answer",
]
