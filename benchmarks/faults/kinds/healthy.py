"""Nothing to name: healthy checkpoints, moved or not, and damage that is spread evenly over all linears."""

import random
from dataclasses import replace
from pathlib import Path

import torch
from benchmarks.faults.bases import Base
from benchmarks.faults.checkpoint import Checkpoint
from benchmarks.faults.kinds.draft import Answer, Draft
from benchmarks.faults.kinds.layers import prompts_of

from subeight.formats import QTensor


def plain(base: Base, chooser: random.Random, directory: Path, attempt: int) -> Draft:  # noqa: ARG001
    """A healthy checkpoint whose norms are the baseline's."""
    recipe = chooser.choice(("rtn4", "gptq4", "rtn3", "gptq3"))
    return _case(base, directory, base.candidate(recipe), recipe)


def awq(base: Base, chooser: random.Random, directory: Path, attempt: int) -> Draft:  # noqa: ARG001
    """A healthy checkpoint moved by AWQ: norms and weights differ, the function does not."""
    recipe = chooser.choice(("awq4", "awq3"))
    return _case(base, directory, base.candidate(recipe), recipe)


def rotated(base: Base, chooser: random.Random, directory: Path, attempt: int) -> Draft:  # noqa: ARG001
    """A healthy checkpoint of the rotated model, as another tool would leave it: without our record."""
    seed, recipe = chooser.randrange(2), chooser.choice(("rtn4", "gptq4"))
    made = base.candidate(recipe, base.rotated(seed), f"-rotated-{seed}")
    draft = _case(base, directory, made, recipe)
    for name in ("record.json", "run.json", "plan.json", "recipe.yaml"):
        (draft.candidate / name).unlink(missing_ok=True)
    return draft


def spread(base: Base, chooser: random.Random, directory: Path, attempt: int) -> Draft:  # noqa: ARG001
    """Damage in every linear alike: 2 bits everywhere, or codes off by one at a rate everywhere."""
    recipe = chooser.choice(("rtn2", "rtn4", "gptq3"))
    healthy = base.candidate(recipe)
    draft = _case(base, directory, healthy, recipe)
    if recipe == "rtn2":
        return draft
    checkpoint = Checkpoint(healthy, draft.candidate)
    rate, generator = chooser.choice((0.1, 0.25, 0.5)), torch.Generator().manual_seed(chooser.randrange(1 << 30))

    def disturb(weight: QTensor) -> QTensor:
        low, high = weight.format.levels
        step = torch.randint(0, 2, weight.codes.shape, generator=generator) * 2 - 1
        hit = torch.rand(weight.codes.shape, generator=generator) < rate
        return replace(weight, codes=(weight.codes + step * hit).clamp(low, high).to(torch.int8))

    for info in checkpoint.linears:
        checkpoint.change(info.name, disturb)
    checkpoint.save()
    draft.notes["rate"] = rate
    return draft


def _case(base: Base, directory: Path, candidate: Path, recipe: str) -> Draft:
    prompts = prompts_of(base, directory)
    copied = Checkpoint(candidate, directory / "candidate").directory
    return Draft(copied, base.directory, prompts, Answer(), notes={"recipe": recipe})
