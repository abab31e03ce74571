"""Subeight takes a language model below 8 bits, shows what breaks, and finds out why.

The verbs of the command line are functions here, and the nouns that they speak of:

    result = subeight.quantize("smollm2", "gptq-int4", options=subeight.Options(out=Path("smollm2-int4")))
    result = subeight.evaluate("smollm2-int4", "smollm2")
    result.numbers["kl"]
"""

from subeight.errors import InputError, ParityError, SubeightError, UndecidedError
from subeight.formats import Format, QTensor
from subeight.models.loadable import register as _register
from subeight.models.model import Model
from subeight.recipes import Plan, Recipe, load_recipe
from subeight.records import Coordinates, Record
from subeight.sweep import Where
from subeight.verbs import (
    Complaint,
    Options,
    Result,
    advise,
    allocate,
    bench,
    compare,
    diagnose,
    evaluate,
    export,
    generate,
    inspect,
    kv,
    lock,
    map,
    quantize,
    report,
    train_qat,
    train_qlora,
    verify,
)

_register()

__all__ = [
    "Complaint",
    "Coordinates",
    "Format",
    "InputError",
    "Model",
    "Options",
    "ParityError",
    "Plan",
    "QTensor",
    "Recipe",
    "Record",
    "Result",
    "SubeightError",
    "UndecidedError",
    "Where",
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
    "load_recipe",
    "lock",
    "map",
    "quantize",
    "report",
    "train_qat",
    "train_qlora",
    "verify",
]
