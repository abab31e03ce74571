"""A quantized checkpoint written again for another target: the same codes, nothing rounded anew."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from subeight.engine.lane import RUN_FILES
from subeight.engine.shards import block_tensors, checkpoint_config, shell_tensors
from subeight.errors import OutputError
from subeight.export.checkpoint import Exporter, ShardWriter
from subeight.formats import QTensor
from subeight.models.model import Model
from subeight.recipes.engines import engines
from subeight.recipes.plan import Plan, Site
from subeight.records.progress import progress


def stored_plan(model: Model) -> Plan:
    """The plan that a quantized checkpoint's codes amount to; raises OutputError where it has none."""
    if model.codes is None:
        raise OutputError(f"{model.label} is not quantized, so there are no codes to export; run quantize first.")
    sites = []
    for linear in model.linears:
        if linear.name in model.codes:
            codes = model.codes.read(linear.name)
            inputs = model.codes.inputs(linear.name)
            how = inputs[0] if inputs else None
            sites.append(Site(linear, codes.format, how, (), "as stored", engines(linear, codes.format, how)))
        else:
            sites.append(Site(linear, None, None, (), "kept in high precision, as stored", engines(linear, None, None)))
    return Plan(recipe="as stored", sites=tuple(sites))


def transcode(
    model: Model,
    plan: Plan,
    exporter: Exporter,
    directory: Path,
    *,
    changed: Mapping[str, QTensor] | None = None,
    values: Mapping[str, Tensor] | None = None,
    quiet: bool = False,
) -> None:
    """Writes the checkpoint `directory` for another target, block by block.

    `changed` are codes of linears in the place of its own, `values` vectors by their full names.
    """
    assert model.codes is not None, "stored_plan has refused what has no codes"
    codes, changed, values = model.codes, changed or {}, values or {}
    exporter.require(plan.sites)
    count = len(model.skeleton.blocks)
    writer = ShardWriter(directory, exporter, count + 1, model.skeleton.tied_names, beside=RUN_FILES)
    with progress(count, f"Exporting {model.label}", "blocks", quiet=quiet) as advance:
        for index in range(count):
            structure = model.structures[index]
            names = [view.info.name for view in structure.linears() if view.info.name in codes]
            found = {name: changed[name] if name in changed else codes.read(name) for name in names}
            inputs = {name: codes.inputs(name) for name in found}
            scales = {name: how[1].scales for name, how in inputs.items() if how and how[1] is not None}
            stored = {name: model.weights.read(name) for name in model.skeleton.block_parameters(index)}
            stored |= {name: values[name].to(stored[name].dtype) for name in stored.keys() & values.keys()}
            writer.write(index, block_tensors(model, structure, stored, found, plan, exporter, scales))
            advance()
    outside = {site.linear.name: codes.read(site.linear.name) for site in plan.quantized if site.linear.block is None}
    writer.write(count, shell_tensors(model, outside, plan, exporter, values))
    writer.finish(checkpoint_config(model), plan.sites, model.directory)
