"""The verbs, as the command line has them."""

from subeight.verbs.compare import compare
from subeight.verbs.evaluate import evaluate
from subeight.verbs.export import export
from subeight.verbs.inspect import inspect
from subeight.verbs.options import Options
from subeight.verbs.quantize import quantize
from subeight.verbs.report import report
from subeight.verbs.session import Result

__all__ = ["Options", "Result", "compare", "evaluate", "export", "inspect", "quantize", "report"]
