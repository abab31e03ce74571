"""From a recipe to a Plan for one model: every user error of a recipe ends here, before a weight is read."""

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from subeight.errors import RecipeError
from subeight.formats import Format
from subeight.kv.policy import KVPolicy
from subeight.methods.base import Select, build, find_methods
from subeight.models.linear_info import LinearInfo
from subeight.models.read.compressed_tensors import unsayable_together
from subeight.recipes.engines import ENGINES, engines
from subeight.recipes.order import moves, round_method, stage, used
from subeight.recipes.plan import MethodChoice, Plan, Site
from subeight.recipes.recipe import Recipe, Rule, did_you_mean

Foldable = Callable[[str], bool] | Collection[str] | None
_FUSING = ("vllm", "sglang")  # they load q/k/v and gate/up as one matrix of one format


@dataclass(frozen=True)
class _Choice:
    """What the recipe, or one rule over it, says of a linear."""

    weights: Format | None
    inputs: Format | None
    methods: tuple[MethodChoice, ...]
    reason: str
    where: str


def resolve(recipe: Recipe, linears: Sequence[LinearInfo], *, engine: str = "any", foldable: Foldable = None) -> Plan:
    """What the recipe does to each of these linears.

    `engine` refuses what that engine could not run. `foldable` tells (or holds) the names of the InputGroups whose
    producer can absorb a scale: elsewhere diagonal moves are left out, and the reason says so. None: all can.

    Raises:
        RecipeError: a rule that matches nothing, an illegal order of methods, a format that does not fit, or an
            engine that cannot run it; the message says which, and the way out.
    """
    if engine not in ("any", *ENGINES):
        raise RecipeError(
            f"{engine!r} is not an engine; give any, {', '.join(ENGINES)}.{did_you_mean(engine, ENGINES)}"
        )
    default = _choice(recipe, None, "recipe default")
    choices = [_choice(recipe, rule, f"rule {at}: {rule.match}") for at, rule in enumerate(recipe.rules, 1)]
    for at, rule in enumerate(recipe.rules, 1):
        _require_match(at, rule, linears)
    sites = [_site(linear, _decide(linear, recipe.rules, default, choices), foldable) for linear in linears]
    if not any(site.weights for site in sites):
        raise RecipeError(f"The recipe {recipe.name} quantizes nothing; give it weights, such as `weights: int4:g64`.")
    _require_same_moves(sites)
    _require_same_rotation(sites)
    sites = with_engines(sites, engine)
    if recipe.kv is not None:
        blocks = {linear.block for linear in linears if linear.block is not None}
        KVPolicy.parse(recipe.kv).require_layers(len(blocks))
    return Plan(recipe=recipe.name, sites=tuple(sites), tap=recipe.tap, kv=recipe.kv)


def _choice(recipe: Recipe, rule: Rule | None, reason: str) -> _Choice:
    where = f"The recipe {recipe.name}" + (f", {reason}" if rule is not None else "")
    given = rule.model_fields_set if rule is not None else set()
    weights_text = rule.weights if rule is not None and "weights" in given else recipe.weights
    if rule is not None and rule.keep:
        weights_text = None
    if weights_text is None:
        return _Choice(None, None, (), f"{reason} (kept)", where)
    inputs_text = rule.inputs if rule is not None and "inputs" in given else recipe.inputs
    uses = rule.methods if rule is not None and rule.methods is not None else recipe.methods
    weights = Format.parse(weights_text)
    inputs = Format.parse(inputs_text) if inputs_text is not None else None
    _require_fitting(weights, inputs, where)
    return _Choice(weights, inputs, used(uses, where), reason, where)


def _require_fitting(weights: Format, inputs: Format | None, where: str) -> None:
    if weights.per == "token":
        raise RecipeError(f"{where}: weights {weights} has one scale per token, which is for inputs; use channel.")
    if inputs is None:
        return
    if inputs.per not in ("token", "tensor"):
        raise RecipeError(f"{where}: inputs {inputs} has one scale per {inputs.per}; use token or tensor.")
    if inputs.per == "tensor" and not inputs.symmetric:
        raise RecipeError(f"{where}: inputs {inputs} is static and affine; use int8:tensor:sym or int8:token:asym.")
    if weights.grid.startswith("fp8") and not inputs.grid.startswith("fp8"):
        raise RecipeError(f"{where}: weights {weights} cannot be multiplied with inputs {inputs}; use fp8:token.")


def _names(rule: Rule, linear: LinearInfo) -> bool:
    """Whether the rule means this linear; what is kept by default must be named, not just covered."""
    if not fnmatchcase(linear.name, rule.match):
        return False
    return _in_default(linear) or bool(re.sub(r"\[.*?\]|[*?]", "", rule.match.rsplit(".", 1)[-1]))


def _in_default(linear: LinearInfo) -> bool:
    return linear.block is not None and linear.kind not in ("router", "embedding", "head")


def _require_match(at: int, rule: Rule, linears: Sequence[LinearInfo]) -> None:
    if any(_names(rule, linear) for linear in linears):
        return
    covered = [linear.name for linear in linears if fnmatchcase(linear.name, rule.match)]
    if covered:
        raise RecipeError(
            f"Rule {at}, match {rule.match!r}, covers only {covered[0]}, which stays in high precision unless the "
            f"last part of a pattern names it; write match: {covered[0]!r}."
        )
    known = {re.sub(r"\d+", "*", linear.name) for linear in linears}
    known |= {f"*.{name.rsplit('.', 1)[-1]}" for name in known if "." in name}
    raise RecipeError(
        f"Rule {at}, match {rule.match!r}, matches no linear of this model; patterns are globs on full names such "
        f"as {linears[0].name}.{did_you_mean(rule.match, sorted(known))}"
    )


def _decide(linear: LinearInfo, rules: Sequence[Rule], default: _Choice, choices: Sequence[_Choice]) -> _Choice:
    for rule, choice in reversed(list(zip(rules, choices, strict=True))):
        if _names(rule, linear):
            return choice
    if _in_default(linear):
        return default
    reason = f"kept in high precision: {_kind(linear)} unless a rule names it"
    return _Choice(None, None, (), reason, default.where)


def _kind(linear: LinearInfo) -> str:
    tied = "lm_head, tied to the embeddings,"
    words = {"head": "lm_head", "tied": tied, "embedding": "embeddings", "router": "router"}
    return words.get(linear.kind, "outside the blocks")


def _site(linear: LinearInfo, choice: _Choice, foldable: Foldable) -> Site:
    if choice.weights is None:
        return Site(linear, None, None, (), choice.reason, ())
    if linear.kind == "tied":
        raise RecipeError(
            f"{choice.where}: {linear.name} is tied to the embeddings and has no weights of its own; leave it out."
        )
    methods, reason = choice.methods, choice.reason
    inputs = choice.inputs if linear.kind != "embedding" else None  # its inputs are token numbers
    if linear.block is None:
        methods, note = _outside(methods)
        reason += note
    elif not _can_fold(linear.group, foldable):
        methods, note = _without_diagonals(methods)
        reason += note
    _require_rotation(linear, choice.weights, inputs, methods, choice.where)
    if choice.weights.per == "group" and choice.weights.group and linear.shape[1] % choice.weights.group:
        reason += f"; last group short: {linear.shape[1] % choice.weights.group} of {choice.weights.group} columns"
    return Site(linear, choice.weights, inputs, methods, reason, ())


def _require_rotation(
    linear: LinearInfo, weights: Format, inputs: Format | None, methods: tuple[MethodChoice, ...], where: str
) -> None:
    """A rotation (`had`) that could not be carried out, or would be undone."""
    what = f"{where}: {linear.name} has"
    if inputs is not None and inputs.rotated and not weights.rotated:
        raise RecipeError(f"{what} rotated inputs ({inputs}) and weights that are not; write weights: {weights}:had.")
    if inputs is not None and inputs.rotated and inputs.per == "tensor":
        raise RecipeError(f"{what} static inputs that are rotated ({inputs}), whose range nothing measures; use token.")
    if inputs is not None and weights.rotated and not inputs.rotated:
        raise RecipeError(f"{what} rotated weights and inputs that are not; write inputs: {inputs}:had.")
    if weights.rotated and any(isinstance(build(*use), Select) for use in methods):
        raise RecipeError(f"{what} rotated weights, which have no outliers left; leave `had` or `outliers` out.")


def _outside(methods: tuple[MethodChoice, ...]) -> tuple[tuple[MethodChoice, ...], str]:
    # Calibration runs over the blocks: what lies outside has no statistics, so only plain rounding is possible.
    rounder = round_method(methods)
    options = dict(next(use[1] for use in methods if use[0] == rounder))
    kept = (rounder, options) if not build(rounder, options).needs else ("rtn", {})
    return (kept,), "" if (kept,) == methods else f"; outside the blocks: {kept[0]} alone"


def _without_diagonals(methods: tuple[MethodChoice, ...]) -> tuple[tuple[MethodChoice, ...], str]:
    known = find_methods()
    dropped = [name for name, _ in methods if stage(known[name]) == "diagonal"]
    kept = tuple(use for use in methods if use[0] not in dropped)
    note = f"; {', '.join(dropped)} left out: nothing before this input can absorb a scale" if dropped else ""
    return kept, note


def _can_fold(group: str, foldable: Foldable) -> bool:
    if foldable is None:
        return True
    return foldable(group) if callable(foldable) else group in foldable


def _require_same_moves(sites: Sequence[Site]) -> None:
    groups: dict[str, list[Site]] = defaultdict(list)
    for site in sites:
        if site.weights is not None and site.linear.block is not None:
            groups[site.linear.group].append(site)
    for members in groups.values():
        first = members[0]
        for other in members[1:]:
            if moves(other.methods) != moves(first.methods):
                raise RecipeError(
                    f"{first.linear.name} and {other.linear.name} read the same input, so one set of moves scales "
                    f"both, but the recipe gives {_listed(first)} and {_listed(other)}; give them the same moves."
                )


def _require_same_rotation(sites: Sequence[Site]) -> None:
    """The stream is turned for all that read it or for none."""
    known = find_methods()
    inside = [site for site in sites if site.weights is not None and site.linear.block is not None]

    def turns(site: Site) -> list[MethodChoice]:
        return [use for use in site.methods if stage(known[use[0]]) == "rotation"]

    for site in inside[1:]:
        if turns(site) != turns(inside[0]):
            one, other = (inside[0], site) if turns(inside[0]) else (site, inside[0])
            raise RecipeError(
                f"{one.linear.name} is rotated and {other.linear.name} is not, but a rotation turns the whole model; "
                "name it in the methods of every rule."
            )


def _listed(site: Site) -> str:
    return " + ".join(name for name, _ in moves(site.methods)) or "none"


def _mixed_fusions(sites: Sequence[Site], engine: str) -> set[str]:
    fused: dict[str, list[Site]] = defaultdict(list)
    for site in sites:
        if site.linear.fusion is not None:
            fused[site.linear.fusion].append(site)
    mixed = {name for name, found in fused.items() if len({(site.weights, site.inputs) for site in found}) > 1}
    if mixed and engine in _FUSING:
        members = next(found for name, found in fused.items() if name in mixed)
        raise RecipeError(
            f"{engine} loads {', '.join(f'{site.linear.name} ({_format(site)})' for site in members)} as one matrix, "
            "which must have one format; give them the same weights and inputs, or use --engine any."
        )
    return mixed


def _stack(site: Site) -> tuple[str, str] | None:
    """The tensor of a GGUF that holds this expert's matrix together with those of its siblings."""
    linear = site.linear
    return None if linear.kind != "expert" or not linear.fusion else (linear.fusion, linear.name.rpartition(".")[2])


def _mixed_stacks(sites: Sequence[Site]) -> set[tuple[str, str] | None]:
    """The stacks of experts that were given several formats; a tensor of a GGUF has one type."""
    formats: dict[tuple[str, str], set[Format | None]] = defaultdict(set)
    for site in sites:
        if (stack := _stack(site)) is not None:
            formats[stack].add(site.weights)
    return {stack for stack, found in formats.items() if len(found) > 1}


def with_engines(sites: Sequence[Site], engine: str) -> list[Site]:
    """The sites with the engines that run them; RecipeError where `engine` is named and is not among them."""
    mixed, stacks = _mixed_fusions(sites, engine), _mixed_stacks(sites)
    apart = unsayable_together(sites) is not None
    result = []
    for site in sites:
        runs = ("subeight",) if site.apart else engines(site.linear, site.weights, site.inputs)
        if apart and site.weights is not None:
            runs = tuple(name for name in runs if name not in (*_FUSING, "transformers"))
        if site.linear.fusion in mixed:
            runs = tuple(name for name in runs if name not in _FUSING)
        if _stack(site) in stacks:
            runs = tuple(name for name in runs if name != "gguf")
        if engine != "any" and engine not in runs:
            raise RecipeError(
                f"{engine} cannot run {site.linear.name} in {_format(site)}, which runs in {', '.join(runs)}; choose "
                "another format or one of these engines."
            )
        result.append(replace(site, runs_in=runs))
    return result


def _format(site: Site) -> str:
    inputs = f" with inputs {site.inputs}" if site.inputs is not None else ""
    return f"{site.weights}{inputs}" if site.weights is not None else str(site.linear.dtype).removeprefix("torch.")
