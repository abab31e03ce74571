"""What happens to experts that no token of the calibration reaches: plain rounding, which the plan gives reason for."""

from collections.abc import Collection
from dataclasses import replace

from subeight.formats import Format
from subeight.methods.base import find_methods
from subeight.recipes.order import stage
from subeight.recipes.plan import MethodChoice, Plan, Site
from subeight.recipes.resolve import with_engines

_PLAIN: MethodChoice = ("rtn", {"search": "mse"})
UNREACHED = "no token of the calibration reaches this expert"
_KEPT = ("rotation", "diagonal", "polish")  # what does not look at this linear's own inputs


def with_fallback(plan: Plan, unreached: Collection[str], format: str | None = None, engine: str = "any") -> Plan:
    """The plan with these experts (by name) rounded to the nearest code, scales of least squared error.

    What a method would conclude from no statistics is left out. `format` stores them wider; engines that fuse experts
    then no longer run the block, which `runs in` says and `engine` refuses.

    Raises:
        RecipeError: `engine` cannot run the result.
    """
    wider = None if format is None else Format.parse(format)
    sites = [_plain(site, wider) if site.linear.expert in unreached else site for site in plan.sites]
    return plan if tuple(sites) == plan.sites else replace(plan, sites=tuple(with_engines(sites, engine)))


def _plain(site: Site, wider: Format | None) -> Site:
    if site.weights is None:
        return site
    known = find_methods()
    kept = [use for use in site.methods if stage(known[use[0]]) in _KEPT]
    place = next((at for at, use in enumerate(kept) if stage(known[use[0]]) == "polish"), len(kept))
    methods = (*kept[:place], _PLAIN, *kept[place:])
    if site.weights.rotated and wider is not None and not wider.rotated:
        wider = None  # its inputs are rotated with it
    reason = f"{site.reason}; {UNREACHED}, so it is rounded to nearest"
    if wider is not None and wider.bits(site.linear.shape) > site.weights.bits(site.linear.shape):
        return replace(site, weights=wider, methods=methods, reason=f"{reason}, in {wider} in place of {site.weights}")
    return replace(site, methods=methods, reason=reason)
