"""A tiny Llama, candidates that were made of changed copies of it, and their cases."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from subeight import Options, quantize
from subeight.diagnose.case import Case, Settings
from subeight.diagnose.cutting import as_used
from subeight.evals.passes import Computing
from subeight.evals.scoring import ask
from subeight.models.model import Model
from subeight.text import evaluate_set
from tests.verbs import small

PLAIN = Computing(torch.float32, torch.device("cpu"), quiet=True)
RTN4 = "name: small-rtn4\nweights: int4:g32:sym\nmethods: [rtn]\n"
Change = Callable[[LlamaForCausalLM], None]


def nothing(made: LlamaForCausalLM) -> None:
    """The healthy candidate."""


def copied(base: Path, directory: Path, change: Change) -> Path:
    """The baseline with something changed, still in full precision."""
    made = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        change(made)
    made.save_pretrained(directory)
    small.tokenizer().save_pretrained(directory)
    return directory


def quantized(base: Path, folder: Path, name: str, change: Change = nothing, recipe: str = RTN4) -> Path:
    """A checkpoint by a recipe, made of a changed copy of the baseline."""
    source = copied(base, folder / f"{name}-source", change)
    text = small.write_text(folder / "calibration.txt")
    given = small.write_recipe(folder / f"{name}.yaml", recipe, text)
    quantize(str(source), str(given), options=Options(threads=1, quiet=True, dtype="float32", out=folder / name))
    return folder / name


def case_of(folder: Path, candidate: Path, base: Path, rows: list[dict], **settings: str) -> Case:
    """The case of the candidate on these prompts."""
    baseline, broken = Model(base), Model(candidate)
    source = str(small.write_rows(folder / "prompts.jsonl", rows))
    question = ask(baseline, evaluate_set([source], baseline.tokenizer(), window=64), PLAIN, folder / "cache")
    whole = as_used(question, [source], broken)
    return Case(
        candidate=broken,
        baseline=baseline,
        sources=[source],
        evaluation=question.evaluation,
        question=question,
        computing=PLAIN,
        cache=folder / "cache",
        settings=Settings(**settings),  # type: ignore[arg-type]
        whole=whole,
        loss=whole,
    )


def noise(like: Tensor, seed: int = 3) -> Tensor:
    """Random numbers of the size of a weight's."""
    return like.std() * torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))


def swapped(weight: Tensor, head_dim: int = 16) -> Tensor:
    """The first two heads in each other's place."""
    return torch.cat([weight[head_dim : 2 * head_dim], weight[:head_dim], weight[2 * head_dim :]])
