"""Faults of linears: wrong scales, zero points off by one, a pair that hurts only together, two bits, the head."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from benchmarks.faults.bases import Base
from benchmarks.faults.checkpoint import Checkpoint, scaled
from benchmarks.faults.kinds.draft import RISE, SMOLLM2_RISE, Answer, Draft, Unplantable, hurts
from benchmarks.faults.kinds.hidden import hidden_places
from benchmarks.faults.measure import activations, error, exact, median, weight_errors
from torch import Tensor

from subeight.formats import Format, QTensor
from subeight.models.model import Model

PROMPTS = {"dense": 7, "mixtral": 7, "smollm2": 4}  # of each category


def prompts_of(base: Base, directory: Path) -> Path:
    """The failing prompts of most kinds: some of each category."""
    count = PROMPTS[base.name]
    return base.prompts(directory / "prompts.jsonl", dict.fromkeys(("prose", "code", "german", "chat"), count))


def draft(base: Base, directory: Path, prompts: Path, healthy: Path, answer: Answer, **more: Any) -> Draft:
    """A case whose candidate in `directory/candidate` is damaged and whose baseline is right."""
    faulty = directory / "candidate"
    rise = more.pop("rise", RISE)
    check = hurts(base, base.directory, prompts, healthy, faulty, rise)
    return Draft(faulty, base.directory, prompts, answer, check, **more)


def scales(base: Base, chooser: random.Random, directory: Path, attempt: int) -> Draft:
    """The scales of a few groups of one linear are wrong by a factor."""
    prompts = prompts_of(base, directory)
    if base.name == "smollm2":
        return _hidden(base, chooser, directory, prompts)
    healthy = base.candidate(chooser.choice(("rtn4", "gptq4", "rtn3", "gptq3")))
    name, groups = _place(chooser, healthy, prompts)
    factor = chooser.choice((1.6, 2.0, 0.35)) if attempt < 8 else 2.5

    def edit(weight: QTensor) -> QTensor:
        factors = torch.ones_like(weight.scales)
        factors[:, groups] = factor
        return scaled(weight, factors)

    return _single(base, directory, prompts, healthy, name, "scales", edit)


def zeros(base: Base, chooser: random.Random, directory: Path, attempt: int) -> Draft:
    """The zero points of some groups of one linear are off by one."""
    if base.name == "mixtral":
        raise Unplantable("experts with zero points cannot be stored", final=True)
    prompts = prompts_of(base, directory)
    healthy = base.candidate(chooser.choice(("affine4", "affine3")))
    name, groups = _place(chooser, healthy, prompts, mean=True, most=4 + attempt)
    step = chooser.choice((-1, 1))

    def edit(weight: QTensor) -> QTensor:
        assert weight.zeros is not None
        low, high = weight.format.levels
        moved = weight.zeros.clone()
        moved[:, groups] = (moved[:, groups] + step).clamp(low, high)
        return replace(weight, zeros=moved)

    return _single(base, directory, prompts, healthy, name, "zeros", edit)


def pair(base: Base, chooser: random.Random, directory: Path, attempt: int) -> Draft:
    """A linear's rows and the columns of its reader that meet them are both enlarged: each alone hardly hurts."""
    prompts = prompts_of(base, directory)
    healthy = base.candidate(chooser.choice(("rtn4", "gptq4") if base.name != "smollm2" else ("gptq4", "mixed")))
    checkpoint = Checkpoint(healthy, directory / "candidate")
    blocks = len(checkpoint.model.skeleton.blocks)
    first, second = ("mlp.up_proj", "mlp.down_proj")
    prefix = f"model.layers.{chooser.randrange(blocks)}"
    if base.name == "mixtral":
        first, second = ("w3", "w2")
        prefix += f".block_sparse_moe.experts.{chooser.randrange(8)}"
    names = (f"{prefix}.{first}", f"{prefix}.{second}")
    reader = checkpoint.read(names[1])
    group = reader.format.group or 32
    at = chooser.randrange(reader.shape[1] // group)
    factor = (3.0, 4.0, 5.0, 6.0)[min(3, attempt // 3)]
    rows = slice(at * group, (at + 1) * group)

    def enlarge_rows(weight: QTensor) -> QTensor:
        factors = torch.ones_like(weight.scales)
        factors[rows] = factor
        return scaled(weight, factors)

    def enlarge_columns(weight: QTensor) -> QTensor:
        factors = torch.ones_like(weight.scales)
        factors[:, at] = factor
        return scaled(weight, factors)

    edits = dict(zip(names, (enlarge_rows, enlarge_columns), strict=True))
    for name, edit in edits.items():
        checkpoint.change(name, edit)
        alone = Checkpoint(healthy, directory / "alone" / name)
        alone.change(name, edit)
        alone.save()
    checkpoint.save()
    made = draft(base, directory, prompts, healthy, Answer("layers", "pair", names), notes={"factor": factor})
    together = made.check
    assert together is not None

    def check() -> dict[str, Any]:
        measured = together()
        parts = []
        for name in names:
            only = hurts(base, base.directory, prompts, healthy, directory / "alone" / name, -1e9)
            parts.append(_loss_alone(only))
        limit = measured["healthy"] + 0.25 * (measured["faulty"] - measured["healthy"])
        if max(parts) > limit:
            raise Unplantable(f"one of the pair alone costs {max(parts):.4f}, of {measured['faulty']:.4f}")
        return {**measured, "alone": parts}

    return replace(made, check=check)


def _loss_alone(check: Callable[[], dict[str, Any]]) -> float:
    try:
        return check()["faulty"]
    except Unplantable as reason:  # it hardly rises, as it should
        return float(str(reason).split(" to ")[1].split()[0])


def block(base: Base, chooser: random.Random, directory: Path, attempt: int) -> Draft:  # noqa: ARG001
    """All linears of one block are rounded to 2 bits in a model of 4 or 3."""
    if base.name == "mixtral":
        raise Unplantable("transformers loads experts only in one format", final=True)
    prompts = prompts_of(base, directory)
    healthy = base.candidate(chooser.choice(("rtn4", "gptq4", "gptq3", "awq4")))
    checkpoint = Checkpoint(healthy, directory / "candidate")
    at = chooser.randrange(len(checkpoint.model.skeleton.blocks))
    names = tuple(info.name for info in checkpoint.linears if info.block == at)
    for name in names:
        checkpoint.requantize(name, Format.parse("int2:g32:sym"))
    checkpoint.save()
    return draft(base, directory, prompts, healthy, Answer("layers", "format", names))


def head(base: Base, chooser: random.Random, directory: Path, attempt: int) -> Draft:
    """The head is quantized too, to 2 bits, or to 3 with one scale a row."""
    if base.name == "smollm2":
        raise Unplantable("its head is tied to the embeddings", final=True)
    prompts = prompts_of(base, directory)
    healthy = base.candidate(chooser.choice(("rtn4", "gptq4", "awq4")))
    checkpoint = Checkpoint(healthy, directory / "candidate")
    format = chooser.choice(("int2:g32:sym", "int3:channel:sym")) if attempt < 3 else "int2:channel:sym"
    checkpoint.requantize("lm_head", Format.parse(format))
    checkpoint.save()
    return draft(base, directory, prompts, healthy, Answer("layers", "format", ("lm_head",)), notes={"format": format})


def _single(
    base: Base,
    directory: Path,
    prompts: Path,
    healthy: Path,
    name: str,
    kind: str,
    edit: Callable[[QTensor], QTensor],
) -> Draft:
    checkpoint = Checkpoint(healthy, directory / "candidate")
    checkpoint.change(name, edit)
    checkpoint.save()
    return draft(base, directory, prompts, healthy, Answer("layers", kind, (name,)))


def _hidden(base: Base, chooser: random.Random, directory: Path, prompts: Path) -> Draft:
    """Wrong scales in a linear whose own weight error stays below the median of all."""
    healthy = base.candidate(chooser.choice(("w4w8", "w4w8-rtn")))
    places = hidden_places(healthy, base.directory, prompts)
    if not places:
        raise Unplantable("no linear has a weight error below the median", final=True)
    chosen = chooser.choice(places)
    made = _single(
        base, directory, prompts, healthy, chosen.name, "scales", lambda weight: scaled(weight, chosen.factors)
    )
    middle = median([*weight_errors(healthy, base.directory).values()])
    damaged = Model(made.candidate)
    assert damaged.codes is not None
    own = error(damaged.codes.read(chosen.name).dequantize(), exact(base.directory, chosen.name))
    if own >= middle:
        raise Unplantable(f"the culprit's weight error is {own:.3f}, the median {middle:.3f}")
    notes = {"weight_error": round(own, 4), "median_error": round(middle, 4)}
    check = hurts(base, base.directory, prompts, healthy, made.candidate, SMOLLM2_RISE)
    return replace(made, check=check, notes=notes)


def _place(
    chooser: random.Random, healthy: Path, prompts: Path, mean: bool = False, most: int | None = None
) -> tuple[str, list[int]]:
    """A linear, and the groups of it whose inputs are largest."""
    met = activations(healthy, prompts)
    model = Model(healthy)
    assert model.codes is not None
    name = chooser.choice([info.name for info in model.linears if info.name in model.codes and info.name in met])
    value = met[name].mean.abs() if mean else met[name].square
    ranked = _energies(value).argsort(descending=True).tolist()
    count = most or chooser.randint(1, max(1, len(ranked) // 2))
    return name, sorted(ranked[: min(count, len(ranked))])


def _energies(square: Tensor, group: int = 32) -> Tensor:
    """The share of each group of channels [groups]."""
    sums = square.view(-1, group).sum(1)
    return sums / sums.sum()
