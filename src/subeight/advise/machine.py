"""What this machine can do: bytes read and products computed a second, and what calling a kernel costs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch

from subeight.formats import Format, quantize
from subeight.kernels.linear import QuantLinear
from subeight.kernels.table import PLAIN
from subeight.records.files import atomic_write

VERSION = 2  # of what is measured: an older file is not read
READ = 1 << 28  # bytes, more than caches hold
SIDE = 2048  # of the matrices whose product is timed
ROWS = 512  # that a linear in int8 reads
TRIES = 5
CALLS = 200


@dataclass(frozen=True)
class Machine:
    """Rates of one device with so many threads: bytes, and operations in bf16 and int8 (two a product), per second.

    `int8` is that of a whole linear, its inputs rounded; None where no kernel multiplies integers there. `call` is the
    seconds of one small linear, whatever it computes.
    """

    device: str
    threads: int
    bandwidth: float
    bf16: float
    int8: float | None
    call: float


def this_machine(device: torch.device, cache: Path) -> Machine:
    """The machine as it was measured before in `cache`, a folder of this stack, or as it is measured now (seconds)."""
    kept = cache / f"machine-{VERSION}-{device.type}-{torch.get_num_threads()}.json"
    if kept.is_file():
        return Machine(**json.loads(kept.read_text(encoding="utf-8")))
    found = Machine(
        device=str(device),
        threads=torch.get_num_threads(),
        bandwidth=_bandwidth(device),
        bf16=2 * SIDE**3 / _median(_bf16(device), device),
        int8=_int8_rate(device),
        call=_call(device),
    )
    kept.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(kept, json.dumps(asdict(found)))
    return found


def _bandwidth(device: torch.device) -> float:
    data = torch.ones(READ // 4, device=device)
    return READ / _median(data.sum, device)


def _bf16(device: torch.device) -> Callable[[], object]:
    left, right = (torch.ones(SIDE, SIDE, dtype=torch.bfloat16, device=device) for _ in range(2))
    return lambda: left @ right


def _int8_rate(device: torch.device) -> float | None:
    if device.type == "cuda":
        wide = torch.ones(SIDE, SIDE, dtype=torch.int8, device=device)
        return 2 * SIDE**3 / _median(lambda: torch._int_mm(wide, wide), device)
    weight = quantize(torch.ones(SIDE, SIDE), Format.parse("int8:channel"))
    layer = QuantLinear(weight.to(device), inputs=Format.parse("int8:token"))
    if layer.choice.name == PLAIN:
        return None
    x = torch.ones(ROWS, SIDE, dtype=torch.bfloat16, device=device)
    return 2 * ROWS * SIDE**2 / _median(lambda: layer(x), device)


def _call(device: torch.device) -> float:
    x, weight = torch.ones(1, 64, device=device), torch.ones(64, 64, device=device)

    def calls() -> None:
        for _ in range(CALLS):
            torch.nn.functional.linear(x, weight)

    return _median(calls, device) / CALLS


def _median(run: Callable[[], object], device: torch.device) -> float:
    """Median seconds; the first call is not counted."""
    found = []
    for _ in range(TRIES + 1):
        began = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - began)
    return median(found[1:])
