"""What `train qlora` stands on: the base as given or as a recipe makes it, and its 16-bit form where it is known."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from subeight.engine.job import Job
from subeight.engine.loop import run as run_loop
from subeight.engine.rounding import methods_of
from subeight.errors import InputError, ModelError
from subeight.export import Exporter, exporter_for
from subeight.models.align import align
from subeight.models.model import Model
from subeight.recipes import Plan, Recipe
from subeight.records import UNKNOWN, Coordinates, fingerprint
from subeight.text import Calibration
from subeight.train.merging import stored_bytes
from subeight.verbs.evaluate import own_record
from subeight.verbs.planning import calibration_of, checkpoint_bytes, planned, target_of
from subeight.verbs.quantize import keep_plan, loop_settings
from subeight.verbs.session import Session

RECIPE = "nf4"  # of QLoRA
REWRITTEN = "the base's weights were rewritten (scaled or rotated), so the adapter does not fit the 16-bit ones"


@dataclass(frozen=True)
class Case:
    """The model as given; how its base is made, or (`makes` false) was made as far as is known; its 16-bit form."""

    session: Session
    opened: Model
    full: Model | None
    recipe: Recipe | None
    plan: Plan | None
    calibration: Calibration | None
    makes: bool

    @property
    def exporter(self) -> Exporter:
        """What codes are written by: compressed-tensors where it holds the plan, else our own method."""
        assert self.plan is not None
        target = target_of(self.plan)
        return exporter_for("subeight" if target == "dense" else target)

    @property
    def dtype(self) -> torch.dtype:
        """What a merged model is stored in."""
        stored = (self.full or self.opened).stored_dtype
        return stored if self.full is not None or stored.itemsize < 4 else torch.bfloat16

    @property
    def disk(self) -> int:
        """Bytes that are written at least: the base."""
        return checkpoint_bytes(self.plan, dense=False) if self.makes and self.plan is not None else 0

    def coordinates(self, evaluation: str) -> Coordinates:
        """The five coordinates; those of another tool's checkpoint are unknown."""
        stack, record = self.session.stack.hash, own_record(self.opened.directory)
        if self.makes and self.plan is not None:
            calibration = None if self.calibration is None else self.calibration.hash
            found = Coordinates(baseline=self.opened.coordinate, recipe=self.plan.fingerprint, calibration=calibration)
        elif record is not None:
            found = record.coordinates
        else:
            full = UNKNOWN if self.full is None else self.full.coordinate
            found = Coordinates(baseline=full, recipe=UNKNOWN, calibration=UNKNOWN)
        return found.model_copy(update={"evaluation": evaluation, "stack": stack})

    @property
    def origin(self) -> dict[str, str | None]:
        """What adapters are marked with: the fingerprint of the base where it is there, else what it is made of."""
        if not self.makes or self.plan is None:
            return {"base": self.opened.coordinate, "made_of": None}
        calibration = None if self.calibration is None else self.calibration.hash
        return {"base": None, "made_of": fingerprint([self.opened.coordinate, self.plan.fingerprint, calibration])}

    @property
    def held(self) -> int:
        """Bytes that the packed base will hold, from its plan."""
        item = self.session.dtype.itemsize
        if not self.makes or self.plan is None:
            return stored_bytes(self.opened, self.session.dtype)
        sites = [site for site in self.plan.quantized if site.linear.kind != "tied"]
        named = self.opened.skeleton.model.named_parameters()
        plain = sum(value.numel() for name, value in named if name not in self.opened.skeleton.tied_names)
        return sum(site.bytes for site in sites) + (plain - sum(site.linear.count for site in sites)) * item

    def base(self, directory: Path) -> Model:
        """The quantized model: written to `directory`, or read back from there, or the one that was given."""
        if not self.makes:
            return self.opened
        self.quantize(self.opened, directory)
        return Model(directory, trust_remote_code=self.session.options.trust_remote_code)

    def quantize(self, model: Model, directory: Path) -> None:
        """Carries out the plan on `model`; blocks that are there are not done again."""
        assert self.plan is not None
        assert self.recipe is not None
        ids = None if self.calibration is None else self.calibration.ids
        directory.mkdir(parents=True, exist_ok=True)
        run_loop(model, [Job(self.plan, directory, self.exporter)], ids, loop_settings(self.session))
        keep_plan(directory, self.recipe, self.plan)

    def why_not_full(self, base: Model) -> str | None:
        """Why an adapter of `base` cannot be added to the 16-bit weights; None where it can."""
        if self.full is None:
            return "the 16-bit model is not known; name it by --baseline"
        if self.makes and self.plan is not None:
            moved = any(method.move == "move" for site in self.plan.quantized for method in methods_of(site))
            return REWRITTEN if moved else None
        if align(self.full, base, device=self.session.device).is_moved:
            return REWRITTEN
        return None


def case_of(session: Session, name: str, recipe: str | None, baseline: str | None) -> Case:
    """The case that the command line describes.

    Raises:
        InputError: a recipe for what is quantized already, or a baseline for what is not.
    """
    opened = session.model(name)
    if opened.codes is None:
        if baseline is not None:
            raise InputError(
                f"{opened.label} is in full precision itself, so --baseline {baseline} has no place; leave it out."
            )
        chosen, plan = planned(opened, recipe or RECIPE, session.options)
        plan = _storable(opened, plan)
        return Case(session, opened, opened, chosen, plan, calibration_of(session, opened, chosen, plan), True)
    if recipe is not None:
        raise ModelError(
            f"{opened.label} is quantized already, so --recipe {recipe} has no place; leave it out, or give the "
            "full-precision model."
        )
    full = _full(session, opened, baseline)
    stored = opened.directory / "recipe.yaml"
    if full is None or not stored.is_file():
        return Case(session, opened, full, None, None, None, False)
    chosen, plan = planned(full, str(stored), session.options)
    plan = _storable(full, plan)
    return Case(session, opened, full, chosen, plan, calibration_of(session, full, chosen, plan), False)


def _full(session: Session, opened: Model, baseline: str | None) -> Model | None:
    """The 16-bit model that is named, or that the checkpoint's record names and that is still there."""
    if baseline is not None:
        found = session.model(baseline)
        if found.codes is not None:
            raise ModelError(f"--baseline {baseline} is quantized itself; give the full-precision model.")
        return found
    record = own_record(opened.directory)
    path = (record.subject.get("paths") or {}).get("model") if record is not None else None
    if path is None:
        return None
    try:
        return session.model(path)
    except ModelError:
        return None


def _storable(model: Model, plan: Plan) -> Plan:
    """The plan without what no checkpoint of ours holds as codes: experts that the model stores as one tensor."""
    whole = {view.info.name for view in model.views() if view.whole}
    if not whole:
        return plan
    reason = "kept: the checkpoint stores all experts as one tensor, which cannot hold codes"
    sites = tuple(
        replace(site, weights=None, inputs=None, methods=(), reason=reason) if site.linear.name in whole else site
        for site in plan.sites
    )
    return replace(plan, sites=sites)
