"""The verbs, as the command line has them."""

from subeight.verbs.advise import advise
from subeight.verbs.allocate import allocate
from subeight.verbs.bench import bench
from subeight.verbs.compare import compare
from subeight.verbs.diagnose import Complaint, diagnose
from subeight.verbs.evaluate import evaluate
from subeight.verbs.export import export
from subeight.verbs.generate import generate
from subeight.verbs.inspect import inspect
from subeight.verbs.kv import kv
from subeight.verbs.lock import lock
from subeight.verbs.map import map
from subeight.verbs.options import Options
from subeight.verbs.quantize import quantize
from subeight.verbs.report import report
from subeight.verbs.session import Result
from subeight.verbs.train_qat import train_qat
from subeight.verbs.train_qlora import train_qlora
from subeight.verbs.verify import verify

__all__ = [
    "Complaint",
    "Options",
    "Result",
    "advise",
    "allocate",
    "bench",
    "compare",
    "diagnose",
    "evaluate",
    "export",
    "generate",
    "inspect",
    "kv",
    "lock",
    "map",
    "quantize",
    "report",
    "train_qat",
    "train_qlora",
    "verify",
]
