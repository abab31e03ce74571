"""Rounding one InputGroup: the linears that agree in format and methods are stacked and rounded in one pass."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from subeight.engine.job import Outcome
from subeight.formats import Format, QTensor, Sparse
from subeight.formats.rotation import rotate
from subeight.methods.base import Fit, Method, Round, Select, build
from subeight.methods.move.rotate import Rotate
from subeight.methods.polishing import Polish
from subeight.methods.round.rtn import Rtn
from subeight.methods.tune import Tune
from subeight.models.block import Block
from subeight.models.stats import Stats
from subeight.models.structure import InputGroup, LinearView
from subeight.recipes.plan import Plan, Site


def methods_of(site: Site) -> list[Method]:
    """The methods of a site, built."""
    return [build(name, options) for name, options in site.methods]


def rounder_of(site: Site) -> Round:
    """The method that rounds a site alone: its own, or what its block is rounded by before all of it is tuned."""
    tuner = tuner_of(site)
    own = next((method for method in methods_of(site) if isinstance(method, Round)), Rtn())
    return own if tuner is None else starter_of(tuner)


def starter_of(tuner: Tune) -> Round:
    """What rounds the linears one by one before this method tunes them together."""
    found = build(tuner.start)
    assert isinstance(found, Round)
    return found


def tuner_of(site: Site) -> Tune | None:
    """The method of a site that rounds it together with the rest of its block, where it has one."""
    return next((method for method in methods_of(site) if isinstance(method, Tune)), None)


def rotation_of(plan: Plan) -> Rotate | None:
    """The rotation of the whole model that the plan begins with, where it has one."""
    methods = (method for site in plan.quantized for method in methods_of(site))
    return next((method for method in methods if isinstance(method, Rotate)), None)


def polish_of(plan: Plan) -> Polish | None:
    """The method of the plan that tunes the whole model, where it has one."""
    methods = (method for site in plan.quantized for method in methods_of(site))
    return next((method for method in methods if isinstance(method, Polish)), None)


def needs(plan: Plan, groups: Iterable[InputGroup], *, moves: bool, rounds: bool) -> frozenset[str]:
    """The statistics that the methods of these groups read."""
    wanted: set[str] = set()
    for group in groups:
        for view in group.linears:
            site = plan.site(view.info.name)
            if site.weights is None:
                continue
            for method in methods_of(site):
                if (moves and method.move == "move") or (rounds and method.move in ("apart", "round")):
                    wanted |= method.needs
                if rounds and isinstance(method, Tune):
                    wanted |= starter_of(method).needs
            if rounds and site.inputs is not None and site.inputs.per == "tensor":
                wanted.add("absmax")
    return frozenset(wanted)


def reads_text(plan: Plan) -> bool:
    """Whether the plan needs calibration text at all."""
    static = any(site.inputs is not None and site.inputs.per == "tensor" for site in plan.quantized)
    return static or any(method.needs for site in plan.quantized for method in methods_of(site))


def round_group(
    block: Block, group: InputGroup, plan: Plan, stats: Stats | None, seed: int
) -> tuple[dict[str, QTensor], list[Outcome]]:
    """Codes for every linear of the group that the plan quantizes, and what each lost."""
    stacks: dict[tuple, list[LinearView]] = defaultdict(list)
    for view in group.linears:
        site = plan.site(view.info.name)
        if site.weights is None:
            continue
        alone = view.info.name if site.weights.per == "tensor" else ""
        stacks[(site.weights, repr(site.methods), alone)].append(view)
    codes: dict[str, QTensor] = {}
    outcomes: list[Outcome] = []
    for views in stacks.values():
        site = plan.site(views[0].info.name)
        assert site.weights is not None
        apart = {view.info.name: set_apart(block.original(view), site, stats) for view in views}
        weight = torch.cat([block.original(view) for view in views])  # [sum of rows, in]
        notes: dict[str, Any] = {"tokens": stats.count} if group.is_expert and stats is not None else {}
        generator = generator_of(seed, views[0].info.name)
        rest = torch.cat([_rest(block.original(view), apart[view.info.name]) for view in views])
        rounded = round_weight(rounder_of(site), rest, site.weights, stats, generator, notes)
        start = 0
        for view in views:
            name, stop = view.info.name, start + view.info.shape[0]
            own = weight[start:stop]
            codes[name] = corrected(own, replace(rounded.rows(start, stop), sparse=apart[name]), site, stats)
            outcomes.append(outcome_of(name, own, codes[name], stats, notes))
            start = stop
    return codes, outcomes


def round_weight(
    rounder: Round,
    weight: Tensor,
    format: Format,
    stats: Stats | None,
    generator: torch.Generator,
    notes: dict[str, Any],
) -> QTensor:
    """Codes by this method; of rotated formats, in the basis where they are."""
    if not format.rotated:
        return rounder.round(weight, format, stats, generator, notes)
    turned = None if stats is None else stats.rotated()
    return replace(rounder.round(rotate(weight), format.plain, turned, generator, notes), format=format)


def set_apart(weight: Tensor, site: Site, stats: Stats | None) -> Sparse | None:
    """The values of a weight that the site keeps in 16 bits."""
    selects = next((method for method in methods_of(site) if isinstance(method, Select)), None)
    assert site.weights is not None
    return None if selects is None else selects.select(weight, site.weights, stats)


def corrected(weight: Tensor, codes: QTensor, site: Site, stats: Stats | None) -> QTensor:
    """The codes with what the site adds to make up for what they lost."""
    fits = next((method for method in methods_of(site) if isinstance(method, Fit)), None)
    return codes if fits is None else replace(codes, thin=fits.fit(weight - codes.dequantize(), stats))


def _rest(weight: Tensor, apart: Sparse | None) -> Tensor:
    return weight if apart is None else weight - apart.dense(weight.shape[1])


def generator_of(seed: int, name: str) -> torch.Generator:
    """One generator for each name, so that a resumed run draws what an uninterrupted one does."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


def outcome_of(name: str, weight: Tensor, codes: QTensor, stats: Stats | None, notes: dict[str, Any]) -> Outcome:
    """What a linear lost."""
    error = codes.dequantize() - weight
    output = None
    if stats is not None and stats.hessian is not None and stats.count:
        lost = float(((error @ stats.hessian) * error).sum(dtype=torch.float64))
        whole = float(((weight @ stats.hessian) * weight).sum(dtype=torch.float64))
        output = max(lost, 0.0) / whole if whole > 0 else None
    norm = float(weight.norm())
    return Outcome(name, float(error.norm()) / norm if norm else 0.0, output, dict(notes))
