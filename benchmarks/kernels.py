"""Every kernel of the table against bf16 on this machine, interleaved in one process: `results/kernels.json`.

    python -m benchmarks.kernels [--threads 2] [--rows 1,8,256] [--seconds 1.5]

A ratio is to the better of F.linear in bf16 and oneDNN's prepacked bf16 linear, medians over the samples; few rows go
over as many copies of the weight as exceed the caches.
"""

import argparse
import time
from collections.abc import Callable
from math import ceil

import torch
from benchmarks.common import spread, write_result
from torch import Tensor

from subeight.formats import Format, QTensor, Scales, quantize
from subeight.kernels.linear import QuantLinear
from subeight.kernels.native import native
from subeight.kernels.products import multiply_rounded, pack_matrix

SHAPES = ((1536, 576), (8192, 2048), (4096, 4096))  # [out, in]
CACHES = 160 << 20  # bytes that no cache holds
FEW = 16  # rows up to which weights are read more than they are multiplied
Run = Callable[[Tensor], Tensor]


def main() -> None:
    """Times all shapes and rows, writes ratios with their spread."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", default="1,4,8,256,1024")
    parser.add_argument("--seconds", type=float, default=1.5, help="for each kernel, shape and number of rows")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    found = {}
    for out, width in SHAPES:
        for rows in map(int, given.rows.split(",")):
            found[f"{out}x{width}, {rows} rows"] = _ratios(out, width, rows, given.seconds)
    write_result("kernels", {"threads": given.threads, "ratios": found})


@torch.no_grad()
def _ratios(out: int, width: int, rows: int, seconds: float) -> dict[str, dict[str, float]]:
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(out, width, generator=draw) / width**0.5
    x = torch.randn(rows, width, generator=draw).bfloat16()
    kernels = _kernels(weight, x, rows)
    times: dict[str, list[float]] = {name: [] for name in kernels}
    for name, copies in kernels.items():
        copies[0](x)
        times[name].clear()
    began, turn = time.perf_counter(), 0
    while time.perf_counter() - began < seconds * len(kernels):
        for number in torch.randperm(len(kernels), generator=draw).tolist():  # what ran before is felt: 20 % after bf16
            name, copies = list(kernels.items())[number]
            run = copies[turn % len(copies)]
            start = time.perf_counter()
            run(x)
            times[name].append(time.perf_counter() - start)
        turn += 1
    found = {name: spread(values) for name, values in times.items()}
    best = min(found[name]["median"] for name in ("bf16 eager", "bf16 prepacked"))
    return {name: {**value, "ratio": best / value["median"]} for name, value in found.items()}


def _kernels(weight: Tensor, x: Tensor, rows: int) -> dict[str, list[Run]]:
    """Each kernel over as many copies as do not fit into the caches, where rows are few."""

    def copies(make: Callable[[], Run], nbytes: float) -> list[Run]:
        return [make() for _ in range(ceil(CACHES / nbytes) if rows <= FEW else 1)]

    size = weight.numel()
    found = {
        "bf16 eager": copies(lambda: _eager(weight.bfloat16()), 2 * size),
        "bf16 prepacked": copies(lambda: _prepacked(weight.bfloat16(), rows), 2 * size),
    }
    for text in ("int4:g64", "int3:g64", "int2:g64", "nf4:g64"):
        coded = quantize(weight, Format.parse(text))
        found[f"{text} {QuantLinear(coded).runner.kernel(rows)}"] = copies(lambda c=coded: QuantLinear(c), coded.nbytes)
        kernels = native()
        if rows <= FEW and not isinstance(kernels, str) and kernels.has_vnni and text.startswith("int"):
            found[f"{text} x in int8"] = copies(lambda c=coded, k=kernels: _rounded(c, k), coded.nbytes)
    if rows <= FEW:
        found["int4:g64 ATen int4pack"] = copies(lambda: _aten(quantize(weight, Format.parse("int4:g64"))), size / 2)
    eight = quantize(weight, Format.parse("int8:channel"))
    scale = Scales(torch.full((1, 1), float(x.abs().max()) / 127))
    found["W8A8 dynamic"] = copies(lambda: QuantLinear(eight, inputs=Format.parse("int8:token")), size)
    found["W8A8 static"] = copies(lambda: QuantLinear(eight, inputs=Format.parse("int8:tensor"), scales=scale), size)
    return found


def _eager(weight: Tensor) -> Run:
    return lambda x: torch.nn.functional.linear(x, weight)


def _prepacked(weight: Tensor, rows: int) -> Run:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")


def _rounded(weight: QTensor, kernels) -> Run:
    packed = pack_matrix(weight)
    return lambda x: multiply_rounded(x, packed, kernels)


def _aten(weight: QTensor) -> Run:
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(weight.codes.to(torch.int32) + 8, 1)
    scales = weight.scales.T
    both = torch.stack([scales, torch.zeros_like(scales)], -1).bfloat16().contiguous()
    return lambda x: torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, 64, both)


if __name__ == "__main__":
    main()
