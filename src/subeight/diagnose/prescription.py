"""What mends a candidate: the repairs of all causes as one recipe, applied and measured on the same prompts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from subeight.diagnose.case import Case
from subeight.diagnose.finding import Cause
from subeight.diagnose.guilt import rounded
from subeight.diagnose.sites import stored_format
from subeight.errors import InputError
from subeight.evals.loss import Loss, recovered
from subeight.formats import Format
from subeight.models.footprint import footprint
from subeight.models.model import Model
from subeight.probe.swaps import Swaps
from subeight.recipes import Recipe, load_recipe

_ROUND = [{"rtn": {"search": "mse"}}]


@dataclass(frozen=True)
class Prescription:
    """The repairs, the loss that they leave, and what they cost in stored bytes.

    `formats` gives linears another format (None: the baseline's precision); `words` is what a recipe cannot say.
    """

    formats: Mapping[str, Format | None]
    words: tuple[str, ...]
    after: Loss
    bytes_before: int
    bytes_after: int
    calibration: Mapping[str, Any]

    def to_dict(self, case: Case) -> dict[str, Any]:
        """As it stands in a record."""
        before, after = case.whole.interval(case.settings.seed), self.after.interval(case.settings.seed)
        share = recovered(case.whole, self.after, seed=case.settings.seed)
        return {
            "loss_before": before.value,
            "loss_before_ci": before.ci,
            "loss_after": after.value,
            "loss_after_ci": after.ci,
            "recovered": share.value,
            "recovered_ci": share.ci,
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "formats": {name: None if format is None else str(format) for name, format in self.formats.items()},
            "words": list(self.words),
        }


def prescribe(case: Case, causes: Sequence[Cause]) -> Prescription:
    """Measures the candidate with everything repaired as cheaply as recovers the loss; `case` is the repaired one."""
    formats = _formats(case, causes)
    size = footprint(case.candidate).bytes
    after = _measured(case, formats) if case.gauge is not None and formats else case.loss
    return Prescription(
        formats=formats,
        words=tuple(word for cause in causes for word in _said(cause)),
        after=after,
        bytes_before=size,
        bytes_after=size + sum(_added(case.candidate, name, format) for name, format in formats.items()),
        calibration=next((c.repair["recalibrate"] for c in causes if "recalibrate" in c.repair), {}),
    )


def _formats(case: Case, causes: Sequence[Cause]) -> dict[str, Format | None]:
    """The linears that are stored anew, with the format of each."""
    known = {linear.name for linear in case.candidate.linears}
    found: dict[str, Format | None] = {}
    for cause in causes:
        if "weights" in cause.repair:
            found |= {name: Format.parse(text) for name, text in cause.repair["weights"].items()}
            continue
        for name in cause.repair.get("restore", ()):
            # a stale or permuted linear is rounded anew: its format was not at fault
            own = stored_format(case.candidate, name) if cause.suspect == "baseline" and name in known else None
            if name in known:
                found[name] = own
    return found


def _measured(case: Case, formats: Mapping[str, Format | None]) -> Loss:
    names = frozenset(formats)
    given = {name: weight for name, weight in case.swaps.given.items() if name not in names}
    kept = Swaps(case.swaps.weights - names, case.swaps.inputs, case.swaps.parameters, given)
    probe = case.probe(base=kept)
    anew = {name: rounded(probe, name, format) for name, format in formats.items() if format is not None}
    return probe.restore(Swaps(weights=frozenset(n for n, f in formats.items() if f is None), given=anew))


def _added(model: Model, name: str, format: Format | None) -> int:
    """Bytes that storing a linear in another format adds."""
    linear = next(linear for linear in model.linears if linear.name == name)
    quantized = model.codes is not None and name in model.codes
    before = model.codes.nbytes(name) if quantized and model.codes is not None else linear.count * linear.dtype.itemsize
    bits = 16.0 * linear.count if format is None else format.bits(linear.shape) * linear.count
    return math.ceil(bits / 8) - before


def _said(cause: Cause) -> list[str]:
    repair = cause.repair
    words = [f"pin {name}=={version}" for name, version in repair.get("pin", {}).items()]
    words += [f"set {name} to {value!r} in config.json" for name, value in repair.get("config", {}).items()]
    if "tokenizer" in repair:
        words.append(f"take the baseline's tokenizer files ({repair['tokenizer']})")
    if "baseline" in repair:
        words.append(f"compare with the right baseline: {repair['baseline']}")
    if "ranges" in repair:
        words.append(f"calibrate the input ranges of {', '.join(repair['ranges'])} again, on text like the prompts")
    tensors = [name for name in repair.get("restore", ()) if name.endswith((".weight", ".bias"))]
    if tensors:
        words.append(f"copy {', '.join(tensors)} from the baseline")
    return words


def recipe_of(case: Case, prescription: Prescription) -> str:
    """The prescription as a recipe for the baseline, in YAML; what it cannot say stands in comments before it."""
    recipe = _own_recipe(case.candidate)
    rules = list(recipe.to_dict()["rules"])
    for name, format in prescription.formats.items():
        stored = {"match": name, "weights": str(format), "methods": _ROUND}
        rules.append({"match": name, "keep": True} if format is None else stored)
    content = {**recipe.to_dict(), "name": f"{recipe.name}-repaired", "rules": rules}
    if source := prescription.calibration.get("source"):
        content["calibration"] = {**content["calibration"], "source": str(source)}
    made = Recipe.from_dict(content)
    comments = [f"# {word}" for word in prescription.words]
    return "\n".join([*comments, yaml.safe_dump(made.to_dict(), sort_keys=False)])


def _own_recipe(model: Model) -> Recipe:
    """The recipe beside the checkpoint, or one that gives every linear the format that it has."""
    path = Path(model.directory) / "recipe.yaml"
    if path.is_file() and model.source.gguf is None:
        try:
            return load_recipe(str(path))
        except InputError:
            pass
    formats = {
        x.name: stored_format(model, x.name) for x in model.linears if x.kind != "tied" and x.dtype.itemsize <= 4
    }
    known = [str(format) for format in formats.values() if format is not None]
    usual = max(set(known), key=known.count, default="int4:g64:sym")
    rules = [
        {"match": name, "keep": True} if format is None else {"match": name, "weights": str(format)}
        for name, format in formats.items()
        if (str(format) if format is not None else None) != usual
    ]
    inside = {linear.name for linear in model.linears if linear.block is not None}
    rules = [rule for rule in rules if rule["match"] in inside or "weights" in rule]
    return Recipe.from_dict({"name": "as-stored", "weights": usual, "methods": ["rtn"], "rules": rules})
