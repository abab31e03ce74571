"""Which text a candidate was calibrated on, and the same recipe carried out again on other text.

Recipe, calibration and windows are read from what `quantize` left beside the checkpoint, or said by the user. Of
another tool's checkpoint only the user can say the text; the nearest recipe (its formats, by gptq) stands in for its
own.
"""

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from subeight.diagnose.case import Case
from subeight.engine.job import Job, Settings
from subeight.engine.loop import run as run_loop
from subeight.engine.rounding import methods_of, reads_text
from subeight.errors import InputError, TextError
from subeight.evals.passes import context_length
from subeight.export import exporter_for
from subeight.models.folds import foldable_groups
from subeight.models.model import Model
from subeight.recipes import Plan, Recipe, load_recipe, resolve
from subeight.records.files import atomic_write
from subeight.text import CalibrationSpec, Sample, calibrate
from subeight.text.calibration import cut
from subeight.text.tokens import end_document, prefix_of

BATCH = 8  # of `quantize`: another one changes the last bits
WITHOUT_TEXT = ("bitsandbytes", "hqq", "torchao", "fp8")  # methods of other tools that read no text


@dataclass(frozen=True)
class Known:
    """What is known of how a candidate was made; `why_not` says what is missing."""

    recipe: Recipe | None
    plan: Plan | None
    ids: Tensor | None  # [sequences, length], the calibration's
    source: str | None
    reads_text: bool | None  # None: unknown
    record: dict[str, Any]
    is_own: bool = False  # the recipe is the candidate's own
    why_not: str = ""

    @property
    def can_repeat(self) -> bool:
        """Whether the recipe can be carried out again."""
        return self.plan is not None and self.ids is not None


def known_of(case: Case) -> Known:
    """What the checkpoint and the user say about calibration."""
    directory = case.candidate.directory
    record = _json(directory / "record.json")
    recipe, plan, problem = _recipe(case, directory)
    if plan is not None and not reads_text(plan):
        return Known(recipe, plan, None, None, False, record, True)
    if plan is None and str((case.candidate.quantization or {}).get("quant_method")) in WITHOUT_TEXT:
        return Known(None, None, None, None, False, record)
    source = case.settings.calibration or (recipe.calibration.source if recipe is not None else None)
    is_own = plan is not None
    if source is None:
        return Known(recipe, plan, None, None, None, record, is_own, problem or "its calibration text is unknown")
    if not is_own and not problem:
        recipe, plan, problem = _nearest(case)
    try:
        ids = _windows(case, source, recipe, record)
    except InputError as error:
        return Known(recipe, plan, None, source, True, record, is_own, f"its calibration text cannot be read ({error})")
    return Known(recipe, plan, ids, source, True, record, is_own, problem)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _recipe(case: Case, directory: Path) -> tuple[Recipe | None, Plan | None, str]:
    path = directory / "recipe.yaml"
    if not path.is_file():
        return None, None, ""
    try:
        recipe = load_recipe(path)
        return recipe, _planned(recipe, case.baseline), ""
    except InputError as error:
        return None, None, f"its recipe cannot be carried out ({error})"


def _planned(recipe: Recipe, model: Model) -> Plan:
    plan = resolve(recipe, model.linears)
    if any(method.move == "move" for site in plan.quantized for method in methods_of(site)):
        plan = resolve(recipe, model.linears, foldable=foldable_groups(model))
    return plan


def _nearest(case: Case) -> tuple[Recipe | None, Plan | None, str]:
    """The candidate's formats, rounded by gptq."""
    codes = case.candidate.codes
    if codes is None:
        return None, None, "it holds no codes, so no recipe can be guessed"
    stored = [linear.name for linear in case.candidate.linears if linear.name in codes]
    formats = {name: str(codes.read(name).format) for name in stored}
    if not formats:
        return None, None, "none of its linears holds codes"
    common = Counter(formats.values()).most_common(1)[0][0]
    rules: list[dict[str, Any]] = []
    for linear in case.candidate.linears:
        format = formats.get(linear.name)
        if format is None and linear.block is not None and linear.kind != "router":
            rules.append({"match": linear.name, "keep": True})
        elif format is not None and (format != common or linear.block is None):
            rules.append({"match": linear.name, "weights": format})
    try:
        recipe = Recipe.from_dict({"name": "nearest", "weights": common, "methods": ["gptq"], "rules": rules})
        return recipe, _planned(recipe, case.baseline), ""
    except InputError as error:
        return None, None, f"no recipe of ours makes its formats ({error})"


def _windows(case: Case, source: str, recipe: Recipe | None, record: dict[str, Any]) -> Tensor:
    """The calibration ids: as the record or the recipe says, or as many windows as the text has."""
    said = {} if recipe is None else recipe.calibration.model_dump()
    said |= (record.get("settings") or {}).get("calibration") or {}
    said = {key: said[key] for key in ("sequences", "length", "seed") if key in said} | {"source": source}
    spec = CalibrationSpec(**said)
    longest = context_length(case.baseline)
    tokenizer = case.baseline.tokenizer()
    length, sequences = min(spec.length, longest), spec.sequences
    while True:
        try:
            return calibrate(CalibrationSpec(source, sequences, length, spec.seed), tokenizer).ids
        except TextError:
            # the text is shorter than that: fewer windows, then shorter ones
            if sequences > 1:
                sequences //= 2
            elif length > 32:
                length //= 2
                sequences = spec.sequences
            else:
                raise


def mixed(ids: Tensor, samples: Sequence[Sample], more: Sequence[list[int]], case: Case) -> tuple[Tensor, int]:
    """The calibration with half of its windows replaced by text of the failing prompts, and how many were.

    `more` are further documents of that kind; where all of it is short, it is repeated.
    """
    tokenizer = case.baseline.tokenizer()
    rows = [*(list(sample.ids) for sample in samples), *more]
    stream = [token for row in rows for token in end_document(row, tokenizer)]
    sequences, length = ids.shape
    prefix = prefix_of(tokenizer)
    while len(stream) < length:
        stream = stream + stream
    windows = cut(stream, length, prefix)
    count = max(1, sequences // 2)
    chosen = [windows[number % len(windows)] for number in range(count)]
    kept = ids[torch.arange(sequences) >= count]  # windows stand in turn of the categories, so any part is a mixture
    return torch.cat([kept, torch.tensor(chosen, dtype=ids.dtype)]), count


def write_text(case: Case, ids: Tensor, path: Path) -> Path:
    """The windows as text, one document each, for the recipe that is prescribed."""
    tokenizer = case.baseline.tokenizer()
    texts = [str(tokenizer.decode(row, skip_special_tokens=True)) for row in ids.tolist()]
    rows = [json.dumps({"id": f"window-{number}", "text": text}) + "\n" for number, text in enumerate(texts)]
    atomic_write(path, "".join(rows))
    return path


def again(case: Case, known: Known, ids: Tensor, name: str) -> Model:
    """The candidate made again by its recipe on these calibration ids, in a directory under the case's cache."""
    assert known.plan is not None
    case.cache.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=case.cache))
    exporter = exporter_for("compressed-tensors")
    exporter.require(known.plan.sites)
    settings = Settings(
        case.computing.dtype,
        case.computing.device,
        BATCH,
        0 if known.recipe is None else known.recipe.calibration.seed,
        max_memory=case.settings.max_memory,
        quiet=case.computing.quiet,
    )
    run_loop(case.baseline, [Job(known.plan, directory, exporter)], ids, settings)
    shutil.rmtree(directory / ".blocks", ignore_errors=True)
    return Model(directory)
