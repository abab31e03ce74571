"""`export`: a quantized checkpoint written for another target, the codes unchanged, and compared again."""

from subeight.engine.transcode import stored_plan, transcode
from subeight.export import exporter_for
from subeight.records import UNKNOWN, Coordinates
from subeight.verbs.evaluate import own_record
from subeight.verbs.options import Options
from subeight.verbs.parity import verified
from subeight.verbs.planning import checkpoint_bytes
from subeight.verbs.session import Result, Session, finish


def export(checkpoint: str, *, to: str = "dense", options: Options | None = None) -> Result:
    """Writes `checkpoint` as `to` (compressed-tensors or dense) into `options.out`.

    Raises:
        InputError: it is not quantized, the target cannot hold it, or the directory holds something else.
        ParityError: what was written computes something else.
    """
    options = options or Options()
    session = Session("export", options)
    exporter = exporter_for(to)
    opened = session.model(checkpoint)
    plan = stored_plan(opened)
    exporter.require(plan.sites)
    own = own_record(opened.directory)
    foreign = Coordinates(baseline=UNKNOWN, recipe=plan.fingerprint, calibration=UNKNOWN)
    coordinates = (own.coordinates if own else foreign).model_copy(update={"stack": session.stack.hash})
    needed = checkpoint_bytes(plan, dense=to == "dense")
    with session.run(opened, {"candidate": opened.coordinate, "to": to}, needed) as run:
        transcode(opened, plan, exporter, run.directory, quiet=options.quiet)
        parity = verified(run.directory, session)
        numbers = {
            "bits_per_weight": plan.bits_per_weight,
            "bytes": plan.bytes,
            "checkpoint": str(run.directory),
            "to": to,
            "parity": parity,
        }
        record = session.record(
            coordinates, numbers, subject={"candidate": opened.label, "checkpoint": str(run.directory)}
        )
        return finish(run, record, (f"{opened.label} as {to} in {run.directory}",))
