"""What quantizing did inside a mixture of experts: tokens that are routed elsewhere, and each expert's own error.

A mean over tokens hides both. Routing is compared as the candidate really runs, each model on its own hidden states. An
expert's error is taken on the tokens that the baseline routes to it, both models' experts reading the same input, in
the candidate's gauge; the text is the evaluation's, so an expert that calibration fed with little shows what that cost.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from subeight.evals.passes import Computing, Sequences
from subeight.evals.stats import mean_interval
from subeight.formats import quantize
from subeight.models.align import align
from subeight.models.block import Block
from subeight.models.gauge import Gauge
from subeight.models.model import Model
from subeight.models.routing import Routing, expert_outputs, experts_of, run_routed
from subeight.models.shell import Shell
from subeight.records.progress import progress
from subeight.text import Batch

LEAST = 32  # tokens of the evaluation under which an expert's error is not held against the others'


@dataclass
class _Tokens:
    """What happened to each token at the router of one block."""

    changed: list[Tensor] = field(default_factory=list)  # 1.0 where the set of its experts is another
    replaced: list[Tensor] = field(default_factory=list)  # share of its experts that are others
    kl: list[Tensor] = field(default_factory=list)  # KL(baseline || candidate) of the router's softmax

    def add(self, ours: Routing, theirs: Routing, real: Bool[Tensor, " tokens"]) -> None:
        same = (ours.chosen[..., None] == theirs.chosen[:, None]).any(-1).float().mean(1)[real]
        self.changed.append((same < 1).double().cpu())
        self.replaced.append((1 - same).double().cpu())
        if ours.logits is not None and theirs.logits is not None:
            p, q = (logits[real].double().log_softmax(-1) for logits in (ours.logits, theirs.logits))
            self.kl.append((p.exp() * (p - q)).sum(-1).cpu())


@dataclass
class _Expert:
    """One expert on the tokens that the baseline gives it."""

    tokens: int = 0
    weight: float = 0.0
    lost: float = 0.0
    plain: float = 0.0  # lost by plain rounding in the same format
    whole: float = 0.0


def expert_numbers(
    baseline: Model, candidate: Model, sequences: Sequences, computing: Computing, *, seed: int = 0
) -> dict[str, Any]:
    """The `experts` of an evaluate record: `rows` of experts, `routing` by block, and what is worst.

    Both models go through the text side by side, a block of each in memory at a time.
    """
    listed = sequences.batches()
    gauge = align(baseline, candidate, device=computing.device)
    shells = [Shell(model, computing.dtype, computing.device) for model in (baseline, candidate)]
    if gauge.is_moved:
        gauge.shell(shells[0])
    states = [[shell.embed(batch.ids) for batch in listed] for shell in shells]
    routing: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    tokens: list[_Tokens] = []
    documents = _documents(sequences, listed)
    count = len(baseline.skeleton.blocks)
    with progress(count, "Comparing experts", "blocks", quiet=computing.quiet) as advance:
        for index in range(count):
            pair = _blocks(baseline, candidate, gauge, index, computing)
            plain = _plainly(pair[0], candidate)
            seen, experts = _walk(pair, plain, shells, states, listed)
            if experts:
                tokens.append(seen)
                routing.append({"block": index, **_shift([seen], documents, seed)})
                rows += _rows(experts_of(pair[0].structure), index, experts, len(documents), plain is not None)
            advance()
    return {**_worst(rows), **_shift(tokens, documents, seed), "routing": routing, "rows": rows}


def _blocks(baseline: Model, candidate: Model, gauge: Gauge, index: int, computing: Computing) -> tuple[Block, Block]:
    ours = Block(baseline, index, torch.float32, computing.device)
    if gauge.is_moved:
        gauge.apply(ours)
    ours.to(computing.dtype)
    return ours, Block(candidate, index, computing.dtype, computing.device)


def _plainly(ours: Block, candidate: Model) -> Block | None:
    """The baseline's block with its experts rounded to nearest in the candidate's formats; None without codes."""
    views = [view for view in ours.structure.linears() if view.expert is not None]
    codes = candidate.codes
    if codes is None or not views or any(view.info.name not in codes for view in views):
        return None
    rounded = copy.copy(ours)
    rounded.module = copy.deepcopy(ours.module)
    for view in views:
        format = codes.read(view.info.name).format
        if format.rotated:
            return None
        weight = ours.weight(view).float().cpu()
        rounded.set_weight(view, quantize(weight, format).dequantize().to(ours.device))
    return rounded


def _walk(
    pair: tuple[Block, Block],
    plain: Block | None,
    shells: Sequence[Shell],
    states: list[list[Tensor]],
    listed: Sequence[Batch],
) -> tuple[_Tokens, list[_Expert]]:
    """Both blocks over all batches; the hidden states become their outputs."""
    seen = _Tokens()
    experts = [_Expert() for _ in experts_of(pair[0].structure)]
    for number, batch in enumerate(listed):
        found: list[Routing | None] = []
        for block, shell, hidden in zip(pair, shells, states, strict=True):
            call = shell.call(tuple(batch.ids.shape), block.index)
            hidden[number], routing = run_routed(block, hidden[number], call)
            found.append(routing)
        ours, theirs = found
        if ours is not None and theirs is not None:
            real = _real(batch).to(ours.chosen.device)
            seen.add(ours, theirs, real)
            _add_errors(experts, pair, plain, ours, real)
    return seen, experts


def _add_errors(
    experts: list[_Expert], pair: tuple[Block, Block], plain: Block | None, ours: Routing, real: Tensor
) -> None:
    for number, expert in enumerate(experts):
        mine = (ours.chosen == number) & real[:, None]
        rows = mine.any(1)
        count = int(rows.sum())
        if not count:
            continue
        inputs = ours.inputs[rows]
        exact, rounded = (expert_outputs(block, inputs, number).double() for block in pair)
        expert.tokens += count
        expert.weight += float(ours.weights[mine].sum(dtype=torch.float64))
        expert.lost += float((rounded - exact).square().sum())
        expert.whole += float(exact.square().sum())
        if plain is not None:
            expert.plain += float((expert_outputs(plain, inputs, number).double() - exact).square().sum())


def _real(batch: Batch) -> Bool[Tensor, " tokens"]:
    """Which cells of a batch are no padding, row after row."""
    return (torch.arange(batch.ids.shape[1])[None] < batch.lengths[:, None]).flatten()


def _documents(sequences: Sequences, listed: Sequence[Batch]) -> np.ndarray:
    """The document of every token that is no padding, in the order in which the batches hold them."""
    found = []
    for batch in listed:
        for number, length in zip(batch.index, batch.lengths.tolist(), strict=True):
            found += [sequences.samples[number].document] * length
    return np.asarray(found)


def _shift(tokens: Sequence[_Tokens], documents: np.ndarray, seed: int) -> dict[str, Any]:
    """Means over the tokens of some blocks with intervals that resample documents; a token counts once a block."""
    found: dict[str, Any] = {}
    for name in ("changed", "replaced", "kl"):
        parts = [torch.cat(values) for one in tokens if (values := getattr(one, name))]
        if not parts:
            found |= {name: None, f"{name}_ci": None}
            continue
        mean = torch.stack(parts).mean(0).numpy()  # over the blocks
        interval = mean_interval(mean, documents, seed=seed).within(0.0)
        found |= {name: interval.value, f"{name}_ci": interval.ci}
    return found


def _rows(
    names: Sequence[str], block: int, experts: Sequence[_Expert], total: int, plain: bool
) -> list[dict[str, Any]]:
    weight = sum(expert.weight for expert in experts)
    return [
        {
            "expert": name,
            "block": block,
            "tokens": expert.tokens,
            "share": expert.tokens / total if total else 0.0,
            "weight": expert.weight / weight if weight else 0.0,
            "output_error": expert.lost / expert.whole if expert.whole else None,
            "plain_error": expert.plain / expert.whole if expert.whole and plain else None,
        }
        for name, expert in zip(names, experts, strict=True)
    ]


def _worst(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How uneven the damage is: the worst expert's error over the median of its own block's, the largest such ratio.

    Blocks differ in how much they lose, so an expert is held against its siblings.
    """
    judged = [row for row in rows if row["output_error"] is not None and row["tokens"] >= LEAST]
    best: dict[str, Any] = {"worst": None, "worst_over_median": None, "judged": len(judged), "least": LEAST}
    for block in sorted({row["block"] for row in judged}):
        mine = [row for row in judged if row["block"] == block]
        median = float(np.median([row["output_error"] for row in mine]))
        top = max(mine, key=lambda row: row["output_error"])
        ratio = top["output_error"] / median if median > 0 else None
        if ratio is not None and (best["worst_over_median"] is None or ratio > best["worst_over_median"]):
            best |= {"worst": top["expert"], "worst_over_median": ratio}
    return {**best, "worse_than_plain": _worse(judged)}


def _worse(judged: Sequence[dict[str, Any]]) -> list[str] | None:
    """Experts that lose more than plain rounding in their format would: what calibration told of them misleads."""
    known = [row for row in judged if row["plain_error"] is not None]
    return [row["expert"] for row in known if row["output_error"] > row["plain_error"]] if known else None
