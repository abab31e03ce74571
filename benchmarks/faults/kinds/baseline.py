"""Inconsistent comparisons: another model, tokenizer or config, or a tensor that is not the baseline's."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from benchmarks.faults.bases import Base
from benchmarks.faults.checkpoint import Checkpoint
from benchmarks.faults.kinds.draft import Answer, Draft, Unplantable, require
from benchmarks.faults.kinds.layers import draft, prompts_of
from benchmarks.faults.measure import loss, question, used_loss
from torch import Tensor

from subeight.formats import QTensor

PLAIN = ("rtn4", "gptq4", "gptq3", "rtn3")
STEPS = {"dense": (40, 120), "mixtral": (40, 120), "smollm2": (10, 25)}  # of a fine-tune
OLD = {"dense": (60, 1e-2), "mixtral": (60, 1e-2), "smollm2": (10, 1e-1)}  # steps and rate: far from the baseline


def permuted(base: Base, chooser: random.Random, directory: Path, attempt: int) -> Draft:  # noqa: ARG001
    """Two key heads of one block are swapped."""
    prompts = prompts_of(base, directory)
    healthy = base.candidate(chooser.choice(PLAIN))
    checkpoint = Checkpoint(healthy, directory / "candidate")
    config = checkpoint.model.config
    one, other = chooser.sample(range(config.num_key_value_heads), 2)
    order = torch.arange(config.num_key_value_heads * config.head_dim).view(-1, config.head_dim)
    order[[one, other]] = order[[other, one]]
    name = f"model.layers.{chooser.randrange(config.num_hidden_layers)}.self_attn.k_proj"

    def swap(weight: QTensor) -> QTensor:
        rows = order.flatten()
        moved = None if weight.zeros is None else weight.zeros[rows]
        return replace(weight, codes=weight.codes[rows], scales=weight.scales[rows], zeros=moved)

    checkpoint.change(name, swap)
    checkpoint.save()
    return draft(base, directory, prompts, healthy, Answer("baseline", "permuted", (name,)))


def stale(base: Base, chooser: random.Random, directory: Path, attempt: int) -> Draft:  # noqa: ARG001
    """One linear is that of another checkpoint: the model trained on at a high rate, quantized alike."""
    prompts = prompts_of(base, directory)
    recipe = chooser.choice(("rtn4", "gptq4"))
    healthy = base.candidate(recipe)
    steps, rate = OLD[base.name]
    other = base.candidate(recipe, base.finetuned(steps, 1, rate), f"-finetuned-{steps}-1")
    checkpoint, source = Checkpoint(healthy, directory / "candidate"), Checkpoint(other, directory / "other")
    name = chooser.choice([info.name for info in checkpoint.linears if info.kind == "linear"])
    checkpoint.write(name, source.read(name))
    checkpoint.save()
    return draft(
        base, directory, prompts, healthy, Answer("baseline", "stale", (name,)), notes={"steps": steps, "rate": rate}
    )


def fine_tune(base: Base, chooser: random.Random, directory: Path, attempt: int) -> Draft:
    """The baseline that is given is a fine-tune of the one that was quantized."""
    prompts = prompts_of(base, directory)
    candidate = base.candidate(chooser.choice((*PLAIN, "awq4")))
    steps = STEPS[base.name][0 if attempt < 2 else 1]
    wrong = base.finetuned(steps, chooser.choice((1, 2)))

    def check() -> dict[str, Any]:
        cache = base.scratch / "references"
        before = loss(question(base.directory, prompts, cache), candidate).value
        return require(before, loss(question(wrong, prompts, cache), candidate).value)

    return Draft(candidate, wrong, prompts, Answer("baseline", "model", ("baseline",)), check, notes={"steps": steps})


def bos(base: Base, chooser: random.Random, directory: Path, attempt: int) -> Draft:  # noqa: ARG001
    """The candidate's tokenizer no longer puts a BOS in front of a text."""
    if base.name == "smollm2":
        raise Unplantable("its tokenizer adds no BOS", final=True)
    counts = dict.fromkeys(("prose", "code", "german"), 8)
    prompts = base.prompts(directory / "prompts.jsonl", counts)
    healthy = base.candidate(chooser.choice((*PLAIN, "awq4")))
    checkpoint = Checkpoint(healthy, directory / "candidate")
    path = checkpoint.directory / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["post_processor"] = None
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    checkpoint.save()
    answer = Answer("baseline", "bos", ("tokenizer.bos",))
    return Draft(checkpoint.directory, base.directory, prompts, answer, _used(base, prompts, healthy, directory))


TEMPLATES: dict[str, Callable[[str], str]] = {
    "chatml": lambda _: (
        "{% for message in messages %}[{{ message['role'] }}]: {{ message['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]: {% endif %}"
    ),
    "no roles": lambda _: (
        "{% for message in messages %}{{ message['content'] }}\n\n{% endfor %}{% if add_generation_prompt %}{% endif %}"
    ),
    "instructions": lambda _: (
        "{% for message in messages %}{% if message['role'] == 'user' %}### Instruction:\n{{ message['content'] }}\n"
        "{% else %}### Response:\n{{ message['content'] }}\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}### Response:\n{% endif %}"
    ),
}


def template(base: Base, chooser: random.Random, directory: Path, attempt: int) -> Draft:  # noqa: ARG001
    """The candidate has another chat template."""
    prompts = base.prompts(directory / "prompts.jsonl", {"chat": 20})
    healthy = base.candidate(chooser.choice((*PLAIN, "awq4")))
    checkpoint = Checkpoint(healthy, directory / "candidate")
    path = checkpoint.directory / "chat_template.jinja"
    name = chooser.choice(list(TEMPLATES))
    path.write_text(TEMPLATES[name](path.read_text(encoding="utf-8")), encoding="utf-8")
    checkpoint.save()
    answer = Answer("baseline", "chat_template", ("chat_template",))
    check = _used(base, prompts, healthy, directory)
    return Draft(checkpoint.directory, base.directory, prompts, answer, check, notes={"template": name})


def _used(base: Base, prompts: Path, healthy: Path, directory: Path) -> Callable[[], dict[str, Any]]:
    """A check of what the candidate loses in use, where it cuts the prompts in another way."""

    def check() -> dict[str, Any]:
        before = used_loss(base.directory, healthy, base.directory, prompts)
        return require(before, used_loss(base.directory, healthy, directory / "candidate", prompts))

    return check


def rope(base: Base, chooser: random.Random, directory: Path, attempt: int) -> Draft:
    """The candidate's config has another base of the rotary embeddings."""
    prompts = prompts_of(base, directory)
    healthy = base.candidate(chooser.choice((*PLAIN, "awq4")))
    checkpoint = Checkpoint(healthy, directory / "candidate")
    before = checkpoint.model.config.rope_parameters["rope_theta"]
    factor = chooser.choice((0.1, 4.0, 10.0, 50.0)) if attempt < 4 else chooser.choice((0.01, 100.0))
    checkpoint.config(rope_parameters={"rope_theta": before * factor})
    checkpoint.save()
    answer = Answer("baseline", "config", ("config.rope_theta",))
    return draft(base, directory, prompts, healthy, answer, notes={"rope_theta": before * factor})


def norm(base: Base, chooser: random.Random, directory: Path, attempt: int) -> Draft:
    """Some channels of one norm are changed, and no linear takes it up."""
    prompts = prompts_of(base, directory)
    healthy = base.candidate(chooser.choice((*PLAIN, "awq4")))
    checkpoint = Checkpoint(healthy, directory / "candidate")
    blocks = checkpoint.model.config.num_hidden_layers
    kinds = ("input_layernorm", "post_attention_layernorm")
    names = ["model.norm.weight", *(f"model.layers.{at}.{kind}.weight" for at in range(blocks) for kind in kinds)]
    name = chooser.choice(names)
    weight = checkpoint.tensor(name)
    channels = chooser.sample(range(len(weight)), len(weight) * min(8, 2 + attempt // 2) // 8)
    factor = chooser.choice((0.4, 1.6, 2.0))
    checkpoint.set(name, _times(weight, channels, factor))
    checkpoint.save()
    notes = {"channels": len(channels), "factor": factor}
    return draft(base, directory, prompts, healthy, Answer("baseline", "tensor", (name,)), notes=notes)


def _times(weight: Tensor, channels: list[int], factor: float) -> Tensor:
    changed = weight.clone().float()
    changed[channels] *= factor
    return changed.to(weight.dtype)
