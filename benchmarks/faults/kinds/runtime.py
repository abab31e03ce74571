"""A kernel that errs on one shape, planted in the processes that run the packed model."""

import random
from pathlib import Path

from benchmarks.faults.bases import Base
from benchmarks.faults.checkpoint import Checkpoint
from benchmarks.faults.kinds.draft import Answer, Draft, Unplantable
from benchmarks.faults.kinds.layers import prompts_of

SITE = '''"""Planted: a matrix product that leaves out the last {tail} columns of weights of the shape {shape}."""

import importlib.abc
import importlib.machinery
import sys

SHAPE, TAIL = {shape}, {tail}


def plant(module):
    exact = module.linear

    def linear(input, weight, bias=None):
        if tuple(weight.shape) == SHAPE:
            return exact(input[..., :-TAIL], weight[:, :-TAIL], bias)
        return exact(input, weight, bias)

    module.linear = linear


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "torch.nn.functional":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            plant(module)

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Finder())
'''


def kernel(base: Base, chooser: random.Random, directory: Path, attempt: int) -> Draft:  # noqa: ARG001
    """In the process that runs the packed model, products with weights of one shape leave out the last columns."""
    if base.name == "mixtral":
        raise Unplantable("its experts run fused", final=True)
    prompts = prompts_of(base, directory)
    candidate = Checkpoint(base.candidate(chooser.choice(("rtn4", "gptq4", "gptq3"))), directory / "candidate")
    shapes = sorted({info.shape for info in candidate.linears})
    shape = chooser.choice(shapes)
    tail = chooser.choice((shape[1] // 8, shape[1] // 4))
    site = directory / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(SITE.format(shape=shape, tail=tail), encoding="utf-8")
    names = tuple(info.name for info in candidate.linears if info.shape == shape)
    return Draft(
        candidate.directory,
        base.directory,
        prompts,
        Answer("kernels", "kernel", names),
        environment={"PYTHONPATH": str(site.resolve())},
        notes={"shape": list(shape), "tail": tail},
    )
