"""stub"""

from subeight.diagnose.case import Case
from subeight.diagnose.finding import Finding
from subeight.models.model import Model


def examine(case: Case, twin: Model) -> Finding:
    return Finding("kernels", "unknown", "")
