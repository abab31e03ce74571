"""A quantized checkpoint written again for another target: the same codes, nothing rounded anew."""

from pathlib import Path

from subeight.engine.lane import RUN_FILES
from subeight.engine.shards import block_tensors, checkpoint_config, shell_tensors
from subeight.errors import OutputError
from subeight.export.checkpoint import Exporter, ShardWriter
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


def transcode(model: Model, plan: Plan, exporter: Exporter, directory: Path, *, quiet: bool = False) -> None:
    """Writes the checkpoint `directory` for another target, block by block."""
    codes = model.codes
    assert codes is not None, "stored_plan has refused what has no codes"
    exporter.require(plan.sites)
    count = len(model.skeleton.blocks)
    writer = ShardWriter(directory, exporter, count + 1, model.skeleton.tied_names, beside=RUN_FILES)
    with progress(count, f"Exporting {model.label}", "blocks", quiet=quiet) as advance:
        for index in range(count):
            structure = model.structures[index]
            found = {v.info.name: codes.read(v.info.name) for v in structure.linears() if v.info.name in codes}
            inputs = {name: codes.inputs(name) for name in found}
            scales = {name: how[1].scales for name, how in inputs.items() if how and how[1] is not None}
            stored = {name: model.weights.read(name) for name in model.skeleton.block_parameters(index)}
            writer.write(index, block_tensors(model, structure, stored, found, plan, exporter, scales))
            advance()
    outside = {site.linear.name: codes.read(site.linear.name) for site in plan.quantized if site.linear.block is None}
    writer.write(count, shell_tensors(model, outside, plan, exporter, {}))
    writer.finish(checkpoint_config(model), plan.sites, model.directory)
