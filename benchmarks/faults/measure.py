"""What is measured while faults are planted: losses on prompts, the activations that linears meet, weight errors."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from subeight.evals.loss import Loss, token_loss
from subeight.evals.passes import Computing, run_pass
from subeight.evals.scoring import Question, ask, score
from subeight.models.block import Block
from subeight.models.model import Model
from subeight.models.precision import compute_dtype
from subeight.models.shell import Shell
from subeight.text import EvaluationSet, Sample, batches, evaluate_set

CPU = torch.device("cpu")
WINDOW = 512
_WIDE = 512  # channels from which on the processor's fast type is used: in float32 a pass takes five times as long


def computing_of(model: Model) -> Computing:
    """How a model is measured: in float32 where it is small."""
    dtype = compute_dtype("auto", CPU) if model.skeleton.width >= _WIDE else torch.float32
    return Computing(dtype, CPU, quiet=True)


@dataclass(frozen=True)
class Met:
    """What a linear meets at its input, by channel [in]: the mean and the mean square over tokens that are not first.

    `stream` is the energy of the residual stream in front of its block, the median of those tokens.
    """

    mean: Tensor
    square: Tensor
    stream: float


@lru_cache(maxsize=8)
def question(baseline: Path, prompts: Path, cache: Path) -> Question:
    """The baseline's pass over the prompts."""
    model = Model(baseline)
    return ask(model, evaluation(baseline, prompts), computing_of(model), cache)


def evaluation(directory: Path, prompts: Path) -> EvaluationSet:
    """The prompts as the tokenizer of a checkpoint cuts them."""
    return evaluate_set([prompts], Model(directory).tokenizer(), window=WINDOW)


@lru_cache(maxsize=8)
def healthy_loss(baseline: Path, prompts: Path, healthy: Path, cache: Path) -> float:
    """What a candidate loses before anything is planted; the same for every place that is tried."""
    return loss(question(baseline, prompts, cache), healthy).value


def loss(asked: Question, candidate: Path) -> Loss:
    """KL(baseline || candidate) on each prompt."""
    scored = score(asked, Model(candidate))
    assert scored.outcomes is not None and scored.places is not None
    return token_loss(scored.outcomes, scored.places)


def used_loss(baseline: Path, candidate: Path, tokenizer: Path, prompts: Path) -> float:
    """KL of a candidate that is asked in the tokens of another tokenizer or template, on the tokens that both share."""
    ours, theirs = evaluation(baseline, prompts).samples, evaluation(tokenizer, prompts).samples
    pairs = [shared(a, b) for a, b in zip(ours, theirs, strict=True)]
    parts = []
    for model, samples, side in ((baseline, ours, 0), (candidate, theirs, 1)):
        chosen = [{pair[side] for pair in listed} for listed in pairs]
        asked = [
            replace(sample, scored=tuple(at in places for at in range(len(sample.ids))))
            for sample, places in zip(samples, chosen, strict=True)
        ]
        listed = [batch for sample in asked if sample.count for batch in batches([sample], 1 << 16)]
        opened = Model(model)
        parts.append(run_pass(opened, listed, computing_of(opened), ""))
    logs = [torch.cat([made.head(hidden) for hidden in made.hidden]).log_softmax(-1) for made in parts]
    return float((logs[0].exp() * (logs[0] - logs[1])).sum(-1).mean())


def shared(ours: Sample, theirs: Sample) -> list[tuple[int, int]]:
    """Places of scored tokens that two cuttings of one prompt have in common."""
    blocks = SequenceMatcher(None, ours.ids, theirs.ids, autojunk=False).get_matching_blocks()
    found = [(block.a + at, block.b + at) for block in blocks for at in range(block.size)]
    return [(a, b) for a, b in found if ours.scored[a] and a > 0 and b > 0]


@lru_cache(maxsize=4)
@torch.no_grad()
def activations(candidate: Path, prompts: Path) -> dict[str, Met]:
    """What every plain linear of the blocks meets, by name, in one streamed pass over the prompts."""
    model = Model(candidate)
    samples = evaluation(candidate, prompts).samples
    dtype = computing_of(model).dtype
    shell = Shell(model, dtype)
    rows = [torch.tensor([sample.ids]) for sample in samples]
    states = [shell.embed(ids) for ids in rows]
    found: dict[str, Met] = {}
    for index in range(len(model.skeleton.blocks)):
        block, seen = Block(model, index, dtype), {}
        for name, module in block.module.named_modules():
            if isinstance(module, nn.Linear):
                module.register_forward_pre_hook(partial(_keep, seen, f"{block.prefix}.{name}"))
        stream = float(torch.cat([state[0, 1:] for state in states]).square().sum(-1).median())
        calls = [shell.call(tuple(ids.shape), index) for ids in rows]
        states = [block(state, call) for state, call in zip(states, calls, strict=True)]
        for name, (count, total, square) in seen.items():
            found[name] = Met(total / count, square / count, stream)
    return found


def _keep(seen: dict[str, Any], name: str, _module: nn.Module, args: tuple[Any, ...]) -> None:
    value = args[0].reshape(-1, args[0].shape[-1]).float()
    count, total, square = seen.get(name, (0, 0.0, 0.0))
    seen[name] = (count + len(value), total + value.sum(0), square + value.square().sum(0))


@lru_cache(maxsize=16)
def weight_errors(candidate: Path, baseline: Path) -> dict[str, float]:
    """Relative weight error of every quantized linear of the blocks, in one gauge (a candidate that was not moved)."""
    made, plain = Model(candidate), Model(baseline)
    assert made.codes is not None
    views = [view for view in plain.views() if view.info.name in made.codes]
    return {
        view.info.name: error(made.codes.read(view.info.name).dequantize(), view.of(plain.weights.read(view.parameter)))
        for view in views
    }


def exact(baseline: Path, name: str) -> Tensor:
    """The baseline's weight of one linear [out, in]."""
    plain = Model(baseline)
    view = next(view for view in plain.views() if view.info.name == name)
    return view.of(plain.weights.read(view.parameter)).float()


def error(weight: Tensor, exact: Tensor) -> float:
    """Relative to the exact weight, in the Frobenius norm."""
    return float((weight - exact.float()).norm() / exact.float().norm())


@lru_cache(maxsize=1)
def whole(baseline: Path) -> Any:
    """The model in memory."""
    return transformers.AutoModelForCausalLM.from_pretrained(baseline, dtype=torch.float32).eval()


@torch.no_grad()
def routing(baseline: Path, rows: Iterable[tuple[int, ...]]) -> list[Tensor]:
    """Which experts each row of token ids reaches: per row, counts [blocks, experts]."""
    model = whole(baseline)
    experts, top = model.config.num_local_experts, model.config.num_experts_per_tok
    found = []
    for ids in rows:
        logits = model(input_ids=torch.tensor([ids]), output_router_logits=True, use_cache=False).router_logits
        chosen = [layer.reshape(-1, experts).topk(top, -1).indices.flatten() for layer in logits]
        found.append(torch.stack([torch.bincount(layer, minlength=experts) for layer in chosen]))
    return found


def median(values: Sequence[float]) -> float:
    """The middle one."""
    return float(np.median(list(values)))


def rows_of(path: Path) -> list[dict[str, Any]]:
    """A JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
