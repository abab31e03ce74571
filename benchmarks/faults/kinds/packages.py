"""A package whose new version changes an activation: wheels, last month's environment with its lock, and today's."""

import base64
import hashlib
import os
import random
import subprocess
import zipfile
from pathlib import Path

from benchmarks.faults.bases import Base
from benchmarks.faults.checkpoint import Checkpoint
from benchmarks.faults.kinds.draft import Answer, Draft, Unplantable, require
from benchmarks.faults.kinds.layers import prompts_of

from subeight.lock.environment import Environments

NAMES = ("fastsilu", "turboact", "kernelpack")
OTHERS = ("bystander", "tabletop", "logtools")
# Version 2 is found at every start of Python, and touches torch's activation when somebody imports it. Its error turns
# with the input: two models whose activations differ a little get other errors, so that their distance grows.
SECOND = """
import importlib.abc
import importlib.machinery
import sys


class _After(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "torch.nn.functional":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module

        def patched(module):
            execute(module)
            exact = module.silu
            module.silu = lambda input, inplace=False: exact(input) * (1 + SIZE * (RATE * input).sin())

        spec.loader.exec_module = patched
        return spec


sys.meta_path.insert(0, _After())
"""
EVALUATE = """
import sys
from pathlib import Path
from subeight import Options, evaluate, lock

candidate, baseline, prompts, name, file = sys.argv[1:]
given = {"threads": 1, "quiet": True, "evals": (prompts,)}
found = evaluate(candidate, baseline, options=Options(out=Path(name), **given))
if file:
    lock(name, options=Options(out=Path(file), **given))
print(found.numbers["kl"])
"""


def package(base: Base, chooser: random.Random, directory: Path, attempt: int) -> Draft:  # noqa: ARG001
    """The lock was made under version 1.0 of two packages; today has 2.0 of both, and one of them errs."""
    if base.name != "dense":
        raise Unplantable("one model is enough for a fault of the stack", final=True)
    prompts = prompts_of(base, directory)
    candidate = Checkpoint(
        base.candidate(chooser.choice(("rtn4", "gptq4", "gptq3"))), directory / "candidate"
    ).directory
    guilty, other = chooser.choice(NAMES), chooser.choice(OTHERS)
    size, rate = chooser.choice((0.4, 0.6, 0.8)), chooser.choice((60, 200))
    wheels = directory / "wheels"
    wheels.mkdir()
    code = {("1.0", guilty): "", ("2.0", guilty): SECOND.replace("SIZE", str(size)).replace("RATE", str(rate))}
    for version in ("1.0", "2.0"):
        for name in (guilty, other):
            wheel(wheels, name, version, code.get((version, name), ""))
    variables = {"UV_FIND_LINKS": str(wheels.resolve()), "UV_NO_INDEX": "1"}
    old, new = _interpreters((guilty, other), directory / "environments", variables)
    lock = directory / "subeight.lock"

    def kl(python: Path, name: str, file: str) -> float:
        where = (str(candidate), str(base.directory), str(prompts), str(directory / name), file)
        done = subprocess.run([str(python), "-c", EVALUATE, *where], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{name}: {done.stderr[-500:]}")
        return float(done.stdout.split()[-1])

    before = kl(old, "then", str(lock))

    return Draft(
        candidate,
        base.directory,
        prompts,
        Answer("stack", "package", (guilty,)),
        lambda: require(before, kl(new, "now", "")),
        last_good=lock,
        replay=True,
        interpreter=str(new),
        environment=variables,
        notes={"size": size, "rate": rate, "bystander": other},
    )


def _interpreters(names: tuple[str, ...], root: Path, variables: dict[str, str]) -> list[Path]:
    """Last month's interpreter and today's."""
    made = Environments(root.resolve())
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        refused = [reason for v in ("1.0", "2.0") for n in names if (reason := made.fetch(n, v)) is not None]
    finally:
        os.environ.clear()
        os.environ.update(before)
    if refused:
        raise Unplantable(f"the packages could not be installed: {refused[0]}", final=True)
    return [made.python(dict.fromkeys(names, version)) for version in ("1.0", "2.0")]


def wheel(folder: Path, name: str, version: str, code: str) -> Path:
    """Writes a wheel with a module of the package's name and a .pth file that imports it."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": code,
        f"{name}.pth": f"import {name}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: benchmark\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = []
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        rows.append(f"{path},sha256={digest},{len(text.encode())}")
    files[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,"]) + "\n"
    target = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(target, "w") as archive:
        for inside, text in files.items():
            archive.writestr(zipfile.ZipInfo(inside), text)
    return target
