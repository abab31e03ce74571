"""Two stacks side by side: every installed package, and what changed, ranked by how likely it changes a number."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch

from subeight.evals.passes import Computing
from subeight.records import Stack
from subeight.records.stack import PACKAGES

Suspicion = Literal["high", "medium", "low"]
_ORDER: tuple[Suspicion, ...] = ("high", "medium", "low")
# Packages that compute, or that choose the kernel which does; a number can change with any of them.
_COMPUTE = (*PACKAGES, "torchvision", "torchaudio", "torchao", "bitsandbytes", "optimum", "kernels", "mkl", "openblas")
_COMPUTE_LIKE = re.compile(
    r"^(nvidia-|intel-|onednn|flash|xformers|gptqmodel|auto-?gptq|auto-?awq|auto-?round|hqq|liger|causal-conv1d|mamba|"
    r"llama-cpp|vllm|sglang|peft|triton|jax|cuda)"
)


@dataclass(frozen=True)
class Change:
    """One thing of the stack that is not what it was; `package` says that `what` names an installed package."""

    what: str
    before: str | None
    after: str | None
    suspicion: Suspicion
    package: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As it stands in a record."""
        return {
            "what": self.what,
            "before": self.before,
            "after": self.after,
            "suspicion": self.suspicion,
            "package": self.package,
        }

    def __str__(self) -> str:
        return f"{self.what}: {self.before or 'absent'} -> {self.after or 'absent'}"


def stack_today(computing: Computing) -> Stack:
    """The stack of this process, as the records of all verbs describe it."""
    gpu = None
    if computing.device.type == "cuda":
        gpu = {"name": torch.cuda.get_device_name(computing.device), "cuda": torch.version.cuda}
    return Stack.today(
        torch.get_num_threads(),
        computing.device.type,
        {"tf32": torch.backends.cuda.matmul.allow_tf32, "deterministic": True},
        dtype=str(computing.dtype).removeprefix("torch."),
        gpu=gpu,
    )


def distributions() -> dict[str, str]:
    """Every installed package with its version, the first on the path where there are several."""
    found: dict[str, str] = {}
    for distribution in metadata.distributions():
        name = distribution.metadata["Name"]
        if name:
            found.setdefault(canonical(name), distribution.version)
    return dict(sorted(found.items()))


def canonical(name: str) -> str:
    """A package's name as indexes normalise it."""
    return re.sub(r"[-_.]+", "-", name).lower()


@cache
def source_hash() -> str:
    """16 hex digits over Subeight's own code: its version may stand still while it changes."""
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def changes(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    packages_before: Mapping[str, str] | None = None,
    packages_after: Mapping[str, str] | None = None,
    sources: tuple[str, str] | None = None,
) -> list[Change]:
    """What changed between two stacks' contents (and their packages and own code), the most suspicious first."""
    found = _packages(
        {**_versions(before), **(packages_before or {})},
        {**_versions(after), **(packages_after or {})},
        whole=packages_before is not None and packages_after is not None,
    )
    found += [Change(*item, "medium") for item in _rest(before, after)]
    if sources is not None and sources[0] != sources[1]:
        found.append(Change("subeight's own code", *sources, "medium"))
    return sorted(found, key=lambda change: (_ORDER.index(change.suspicion), not change.package, change.what))


def _versions(contents: Mapping[str, Any]) -> dict[str, str]:
    packages = contents.get("packages") or {}
    return {canonical(name): version for name, version in packages.items() if version is not None}


def _packages(before: Mapping[str, str], after: Mapping[str, str], *, whole: bool) -> list[Change]:
    """With `whole` both sides list everything; otherwise only what both sides know is compared."""
    names = sorted({*before, *after} if whole else {*before} & {*after})
    return [
        Change(name, before.get(name), after.get(name), suspicion_of(name), package=True)
        for name in names
        if before.get(name) != after.get(name)
    ]


def suspicion_of(package: str) -> Suspicion:
    """How likely another version of this package changes a number."""
    if package in _COMPUTE or _COMPUTE_LIKE.match(package):
        return "high"
    return "medium" if _starts_with_python(package) else "low"


def _starts_with_python(package: str) -> bool:
    """Whether it runs code at the start of every interpreter (a .pth file), so that it can change any other package."""
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        return False
    return any(file.suffix == ".pth" and not file.name.startswith("__editable__") for file in files)


def _rest(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[str, str | None, str | None]]:
    left, right = _flat(before), _flat(after)
    names = dict.fromkeys([*left, *right])
    return [(name, left.get(name), right.get(name)) for name in names if left.get(name) != right.get(name)]


def _flat(contents: Mapping[str, Any]) -> dict[str, str | None]:
    flat: dict[str, str | None] = {}
    for name, value in contents.items():
        if name == "packages":
            continue
        if name == "cpu_flags":
            flat |= {f"cpu flag {flag}": "present" for flag in value}
        elif isinstance(value, Mapping):
            flat |= {f"{name}.{key}": str(item) for key, item in value.items()}
        else:
            flat[name] = None if value is None else str(value)
    return flat
