"""The Stack fingerprint: what of the software and the machine can change a number.

Two runs whose stacks have the same hash should give the same bits; `difference` says what changed.
Torch is not imported here: its version is read from the installed package, and its thread count and numerics
flags are passed in.
"""

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Self

from subeight.records.coordinates import fingerprint

PACKAGES = (
    "subeight", "torch", "transformers", "tokenizers", "safetensors", "compressed-tensors", "accelerate",
    "gguf", "numpy", "scipy", "triton",
)  # fmt: skip
# Instruction sets that torch, oneDNN and MKL choose kernels by: another set is another order of sums.
FLAGS = (
    "sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512dq", "avx512vl",
    "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "amx_fp16",
    "asimd", "asimdhp", "asimddp", "bf16", "i8mm", "sve", "sve2", "sme",
)  # fmt: skip
# Settings outside the program that make the same libraries choose other kernels; observed, never obeyed.
ENVIRONMENT = (
    "ATEN_CPU_CAPABILITY", "CUBLAS_WORKSPACE_CONFIG", "DNNL_MAX_CPU_ISA", "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS", "NVIDIA_TF32_OVERRIDE", "ONEDNN_DEFAULT_FPMATH_MODE", "ONEDNN_MAX_CPU_ISA",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
)  # fmt: skip


@dataclass(frozen=True)
class Stack:
    """One machine and its software, as far as they can change a number."""

    python: str
    platform: str
    packages: Mapping[str, str | None]
    cpu: str
    cpu_flags: tuple[str, ...]
    threads: int
    device: str
    dtype: str | None = None
    gpu: Mapping[str, Any] | None = None
    numerics: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def today(
        cls,
        threads: int,
        device: str = "cpu",
        flags: Mapping[str, Any] | None = None,
        *,
        dtype: str | None = None,
        gpu: Mapping[str, Any] | None = None,
    ) -> Self:
        """The stack of this process.

        `flags` are the numerics settings of torch (TF32, deterministic, ...); `gpu` is its name and driver.
        """
        model, cpu_flags = _cpu()
        return cls(
            python=platform.python_version(),
            platform=_platform(),
            packages={name: _version(name) for name in PACKAGES},
            cpu=model,
            cpu_flags=cpu_flags,
            threads=threads,
            device=device,
            dtype=dtype,
            gpu=dict(gpu) if gpu is not None else None,
            numerics=dict(flags or {}),
            environment={name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        )

    @property
    def hash(self) -> str:
        """16 hex digits over everything that the stack holds."""
        return fingerprint(self.contents())

    def contents(self) -> dict[str, Any]:
        """The stack as plain JSON values, for `Record.stack`."""
        values = asdict(self)
        values["cpu_flags"] = list(self.cpu_flags)
        return values


def difference(a: Stack | Mapping[str, Any], b: Stack | Mapping[str, Any]) -> list[str]:
    """What changed from stack `a` to stack `b`, one line each: `torch: 2.13.0 -> 2.14.0`."""
    left, right = _flat(a), _flat(b)
    lines = []
    for name in dict.fromkeys([*left, *right]):
        old, new = left.get(name), right.get(name)
        if old != new:
            lines.append(f"{name}: {_shown(old)} -> {_shown(new)}")
    return lines


def _flat(stack: Stack | Mapping[str, Any]) -> dict[str, Any]:
    contents = stack.contents() if isinstance(stack, Stack) else dict(stack)
    flat: dict[str, Any] = {}
    for name, value in contents.items():
        if name == "packages":
            flat.update(value)
        elif name == "cpu_flags":
            flat.update({f"cpu flag {flag}": "present" for flag in value})
        elif isinstance(value, Mapping):
            flat.update({f"{name}.{key}": item for key, item in value.items()})
        else:
            flat[name] = value
    return flat


def _shown(value: Any) -> str:
    return "absent" if value is None else str(value)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _platform() -> str:
    # The C library belongs to it: its exp and log change from version to version. The kernel does not.
    libc = " ".join(part for part in platform.libc_ver() if part) or platform.mac_ver()[0]
    return f"{platform.system()} {platform.machine()} {libc}".rstrip()


def _cpu() -> tuple[str, tuple[str, ...]]:
    """Name and telling instruction flags of the processor; empty flags where the system does not say."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        return _parse_cpuinfo(info.read_text(errors="replace"))
    if sys.platform == "darwin":
        name = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True)
        return name.stdout.strip() or platform.machine(), ()
    return platform.processor() or platform.machine(), ()


def _parse_cpuinfo(text: str) -> tuple[str, tuple[str, ...]]:
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip().lower(), value.strip())
    present = set((fields.get("flags") or fields.get("features") or "").split())
    name = fields.get("model name") or fields.get("cpu part") or platform.machine()
    return name, tuple(flag for flag in FLAGS if flag in present)
