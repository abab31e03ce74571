"""How many tokens an expert needs: GPTQ from few of them, and from tokens that were never routed to it.

    python -m benchmarks.moe_tokens MODEL [--threads 1]

MODEL is what `benchmarks/moe_model.py` trains. Gate and up of each busy expert are rounded by GPTQ from 1 to 512 of the
tokens that are routed to it (packaged calibration text), then from as many tokens of all, as forced calibration shows
them. The error of their output is measured on the tokens that the packaged evaluation text routes to the expert, over
that of plain rounding with scales of least squared error: below 1 calibration helps.
"""

import argparse
import statistics
from collections import defaultdict
from collections.abc import Iterator

import torch
from benchmarks.common import write_result
from torch import Tensor

from subeight.formats import Format, QTensor
from subeight.methods.base import Round, build
from subeight.models.block import Block
from subeight.models.model import Model
from subeight.models.routing import run_routed
from subeight.models.shell import Shell
from subeight.models.stats import Stats
from subeight.models.structure import InputGroup
from subeight.text import CalibrationSpec, calibrate

TOKENS = (1, 4, 8, 16, 32, 64, 128, 256, 512)
BITS = (4, 3)
LENGTH, BATCH = 256, 16
LEAST = (600, 250)  # tokens of calibration and of evaluation that make an expert busy


def main() -> None:
    """Writes `results/moe_tokens.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = Model(arguments.model)
    found: dict[tuple[str, int, int], list[float]] = defaultdict(list)
    generator = torch.Generator().manual_seed(0)
    for block, group, own, every, held in experts(model):
        weight = torch.cat([block.original(view) for view in group.linears])
        for bits in BITS:
            for name, tokens, ratio in ratios(weight, bits, own, every, held, generator):
                found[name, bits, tokens].append(ratio)
    rows = [
        {"tokens_of": name, "bits": bits, "tokens": tokens, "experts": len(values), **_summary(values)}
        for (name, bits, tokens), values in sorted(found.items())
    ]
    write_result("moe_tokens", {"width": model.skeleton.width, "rows": rows}, model=model.coordinate, least=LEAST)


def _summary(values: list[float]) -> dict[str, float]:
    worse = sum(value > 1 for value in values) / len(values)
    return {"median": round(statistics.median(values), 4), "worst": round(max(values), 4), "worse": round(worse, 4)}


def experts(model: Model) -> Iterator[tuple[Block, InputGroup, Tensor, Tensor, Tensor]]:
    """Busy experts: block and group, their tokens and all tokens of calibration, their tokens of evaluation."""
    tokenizer, shell = model.tokenizer(), Shell(model, torch.float32)
    specs = (CalibrationSpec("builtin", 96, LENGTH), CalibrationSpec("builtin:evaluation", 48, LENGTH))
    states = [shell.embed(calibrate(spec, tokenizer).ids) for spec in specs]
    for index in range(len(model.skeleton.blocks)):
        block = Block(model, index, torch.float32, keep=True)
        read, chosen = [], []
        for side in (0, 1):
            outputs, routings = [], []
            for part in torch.split(states[side], BATCH):
                output, routing = run_routed(block, part, shell.call(tuple(part.shape[:2]), index))
                assert routing is not None
                outputs.append(output)
                routings.append(routing)
            states[side] = torch.cat(outputs)
            read.append(torch.cat([routing.inputs for routing in routings]))
            chosen.append(torch.cat([routing.chosen for routing in routings]))
        for group in block.structure.groups:
            if not group.is_expert or len(group.linears) != 2:
                continue
            own, held = (read[side][(chosen[side] == group.linears[0].expert).any(1)] for side in (0, 1))
            if len(own) >= LEAST[0] and len(held) >= LEAST[1]:
                yield block, group, own, read[0], held


def ratios(
    weight: Tensor, bits: int, own: Tensor, every: Tensor, held: Tensor, generator: torch.Generator
) -> Iterator[tuple[str, int, float]]:
    """Whose tokens, how many, and the error over that of plain rounding."""
    format = Format.parse(f"int{bits}:g32:sym")
    hessian = Stats.from_inputs(held, {"hessian"}).hessian
    assert hessian is not None

    def lost(rounded: QTensor) -> float:
        error = rounded.dequantize() - weight
        return float(((error @ hessian) * error).sum(dtype=torch.float64))

    plain, gptq = build("rtn", {"search": "mse"}), build("gptq")
    assert isinstance(plain, Round) and isinstance(gptq, Round)
    base = lost(plain.round(weight, format, None, generator))
    for name, tokens in (("its own", own), ("all", every)):
        for count in (*TOKENS, len(tokens)) if name == "all" else TOKENS:
            drawn = tokens[torch.randperm(len(tokens), generator=generator)[:count]]
            stats = Stats.from_inputs(drawn, {"hessian"})
            yield name, count, lost(gptq.round(weight, format, stats, generator)) / base


if __name__ == "__main__":
    main()
