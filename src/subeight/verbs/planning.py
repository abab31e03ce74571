"""From a recipe's name to a plan for a model and the calibration text that it asks for; all before a weight is read."""

from typing import Any

from subeight.engine.job import CALIBRATION_BATCH
from subeight.engine.rounding import methods_of, reads_text
from subeight.engine.selfcalibration import sample_self
from subeight.errors import RecipeError
from subeight.evals.passes import context_length
from subeight.methods.base import build
from subeight.models.folds import foldable_groups
from subeight.models.model import Model
from subeight.recipes import Calibration as Asked
from subeight.recipes import Plan, Recipe, load_recipe, resolve
from subeight.text import Calibration, CalibrationSpec, calibrate
from subeight.verbs.forecast import product_rate
from subeight.verbs.options import Options
from subeight.verbs.session import Session


def planned(
    model: Model, name: str, options: Options, *, engine: str = "any", tap: str | None = None
) -> tuple[Recipe, Plan]:
    """The recipe called `name` and its plan; `tap` overrides where the statistics are taken."""
    return planned_recipe(model, load_recipe(name), options, engine=engine, tap=tap)


def planned_recipe(
    model: Model, recipe: Recipe, options: Options, *, engine: str = "any", tap: str | None = None
) -> tuple[Recipe, Plan]:
    """A recipe as the options change it, and its plan."""
    if tap is not None:
        recipe = recipe.model_copy(update={"tap": tap})
    changed: dict[str, Any] = {}
    if options.calibration is not None:
        changed["source"] = options.calibration
    if options.seed:  # 0 says nothing: the recipe's own seed holds
        changed["seed"] = options.seed
    if options.per_expert is not None:
        changed["per_expert"] = options.per_expert
    if options.pool is not None:
        changed["pool"] = options.pool
    asked = recipe.calibration.model_copy(update=changed)
    if asked.pool is not None and not asked.per_expert:
        raise RecipeError("--pool feeds experts that are short of --per-expert tokens; give that too, such as 256.")
    recipe = recipe.model_copy(update={"calibration": asked})
    plan = resolve(recipe, model.linears, engine=engine)
    if any(method.move == "move" for site in plan.quantized for method in methods_of(site)):
        plan = resolve(recipe, model.linears, engine=engine, foldable=foldable_groups(model))
    return recipe, plan


def length_of(asked: Asked, model: Model) -> int:
    """Tokens of a sequence of the recipe's calibration, as the model takes them."""
    return min(asked.length, context_length(model))


def calibration_of(session: Session, model: Model, recipe: Recipe, plan: Plan) -> Calibration | None:
    """The calibration text of a recipe, cut to what the model takes; None where the plan reads no text.

    None also for a dry run on the model's own text, which would have to be sampled first.
    """
    asked = recipe.calibration
    if not reads_text(plan) or (asked.source == "self" and session.options.dry_run):
        return None
    spec = CalibrationSpec(asked.source, asked.sequences, length_of(asked, model), asked.seed)
    if asked.source == "self":
        return sample_self(model, spec, session.computing, yes=session.options.yes)
    return calibrate(spec, model.tokenizer())


def target_of(plan: Plan) -> str:
    """What a plan's checkpoint is stored as: compressed-tensors where transformers runs all of it, else our own method.

    Experts in our own method would have to be stored one by one, and are stored dense.
    """
    if all("transformers" in site.runs_in for site in plan.quantized):
        return "compressed-tensors"
    return "dense" if any(site.linear.kind == "expert" for site in plan.quantized) else "subeight"


def checkpoint_bytes(plan: Plan, *, dense: bool) -> int:
    """What the checkpoint of a plan takes on disk; a dense one is as large as its baseline."""
    listed = [site for site in plan.sites if site.linear.kind != "tied"]
    return int(sum(site.linear.count * site.linear.dtype.itemsize if dense else site.bytes for site in listed))


def predicted(model: Model, recipe: Recipe, plan: Plan, session: Session, *, dense: bool = False) -> dict[str, Any]:
    """What a quantization will take: seconds from a measured product on this machine, memory and disk from sizes."""
    asked = recipe.calibration
    tokens = asked.sequences * length_of(asked, model) if reads_text(plan) else 0
    rate = product_rate(session)
    weights = sum(site.linear.count for site in plan.sites if site.linear.block is not None)
    width = max(site.linear.shape[1] for site in plan.quantized)
    forwards, through_head = _forwards(plan, asked.sequences)
    text = model.config.get_text_config(decoder=True)
    head = 2.0 * through_head * tokens * text.vocab_size * text.hidden_size
    solving = (
        sum(float(site.linear.shape[0]) * site.linear.shape[1] ** 2 for site in plan.quantized) if forwards else 0.0
    )
    block = max(_block_bytes(model, index) for index in range(len(model.skeleton.blocks)))
    outside = sum(site.bytes for site in plan.sites if site.linear.block is None and site.linear.kind != "tied")
    hidden = tokens * text.hidden_size * session.dtype.itemsize
    return {
        "seconds": round((2 * weights * tokens * forwards + head + 4 * solving) / rate + 2e-8 * weights, 1),
        "memory_bytes": int(2 * block + hidden + 3 * 4 * width**2 + outside),
        "disk_bytes": checkpoint_bytes(plan, dense=dense),
    }


def _forwards(plan: Plan, sequences: int) -> tuple[float, float]:
    """How often the calibration text goes through the blocks, and through the head too where the whole is tuned."""
    if not reads_text(plan):
        return 0.0, 0.0
    uses = {repr(use): build(*use) for site in plan.quantized for use in site.methods}
    more = {use: method.passes(sequences, CALIBRATION_BATCH) for use, method in uses.items()}
    through_head = sum(more[use] for use, method in uses.items() if method.move == "polish")
    routed = 1.0 if any(site.linear.kind == "expert" for site in plan.sites) else 0.0  # what reaches which is counted
    return (3.5 if plan.tap == "sequential" else 2.0) + routed + sum(more.values()), through_head


def _block_bytes(model: Model, index: int) -> int:
    return sum(4 * parameter.numel() for parameter in model.skeleton.blocks[index].parameters())
