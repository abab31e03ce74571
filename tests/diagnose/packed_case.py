"""A tiny model, its checkpoint with packed 4-bit weights, and a case that asks why the checkpoint fails."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from subeight import Options, quantize
from subeight.diagnose.case import Case, Settings
from subeight.evals.passes import Computing
from subeight.evals.scoring import ask
from subeight.export import Parity
from subeight.models.model import Model
from subeight.text import evaluate_set
from subeight.verbs import parity
from tests.verbs import small

PLAIN = Computing(torch.float32, torch.device("cpu"), quiet=True)
RECIPE = "name: packed\nweights: int4:g32:sym\nmethods: [rtn]\n"


@dataclass(frozen=True)
class Pair:
    """A baseline, a packed checkpoint of it, and prompts."""

    folder: Path
    base: Path
    packed: Path
    prompts: Path

    def case(self, candidate: Path | None = None, rows: Path | None = None, **settings: object) -> Case:
        """The case of the candidate (the packed checkpoint, unless another is given) on the prompts."""
        baseline, broken = Model(self.base), Model(candidate or self.packed)
        source = rows or self.prompts
        evaluation = evaluate_set([source], baseline.tokenizer(), window=48)
        question = ask(baseline, evaluation, PLAIN, self.folder / "cache")
        case = Case(
            candidate=broken,
            baseline=baseline,
            sources=[str(source)],
            evaluation=evaluation,
            question=question,
            computing=PLAIN,
            cache=self.folder / "cache",
            settings=Settings(**settings),  # type: ignore[arg-type]
            whole=None,  # type: ignore[arg-type]
            loss=None,  # type: ignore[arg-type]
        )
        loss = case.measure(broken)
        return case.with_repair(loss, whole=loss)


def make(folder: Path, recipe: str = RECIPE, rows: int = 8, save: Callable[[Path], Path] = small.save_llama) -> Pair:
    """Writes the two models and the prompts into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cache").mkdir()
    base = save(folder / "base")
    given = small.write_recipe(folder / "recipe.yaml", recipe)
    prompts = small.write_rows(folder / "prompts.jsonl", small.text_rows(rows))
    options = Options(threads=1, quiet=True, dtype="float32", evals=(str(prompts),), out=folder / "made")
    checked = parity.check
    parity.check = lambda *_args, **_options: Parity(0.0, 1.0, 0, 0)  # type: ignore[assignment]
    try:
        quantize(str(base), str(given), options=options)
    finally:
        parity.check = checked
    return Pair(folder, base, folder / "made", prompts)


def save_mixtral(directory: Path) -> Path:
    """A tiny Mixtral, whose experts transformers fuses into one tensor, with the small tokenizer."""
    sizes = {**small.SIZES, "num_local_experts": 4, "num_experts_per_tok": 2}
    before = torch.random.get_rng_state()
    torch.manual_seed(0)
    transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes)).float().eval().save_pretrained(directory)
    torch.random.set_rng_state(before)
    small.tokenizer().save_pretrained(directory)
    return directory
