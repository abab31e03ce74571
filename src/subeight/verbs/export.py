"""`export`: a quantized checkpoint written for another target, the codes unchanged, and compared again."""

from subeight.engine.transcode import stored_plan, transcode
from subeight.export import GGUF, exporter_for, require_gguf
from subeight.records import UNKNOWN, Coordinates
from subeight.verbs.evaluate import own_record
from subeight.verbs.ggufs import gguf_file
from subeight.verbs.options import Options
from subeight.verbs.parity import verified
from subeight.verbs.planning import checkpoint_bytes
from subeight.verbs.session import Result, Session, finish


def export(checkpoint: str, *, to: str = "dense", options: Options | None = None) -> Result:
    """Writes `checkpoint` as `to` (compressed-tensors, subeight, dense or gguf) into `options.out`.

    A GGUF file, for llama.cpp, is `model.gguf` in that directory.

    Raises:
        InputError: it is not quantized, the target cannot hold it, or the directory holds something else.
        ParityError: what was written computes something else.
    """
    options = options or Options()
    session = Session("export", options)
    exporter = exporter_for(to) if to != GGUF else None
    opened = session.model(checkpoint)
    plan = stored_plan(opened)
    if exporter is None:
        require_gguf(opened, plan.sites)
    else:
        exporter.require(plan.sites)
    own = own_record(opened.directory)
    foreign = Coordinates(baseline=UNKNOWN, recipe=plan.fingerprint, calibration=UNKNOWN)
    coordinates = (own.coordinates if own else foreign).model_copy(update={"stack": session.stack.hash})
    needed = checkpoint_bytes(plan, dense=to == "dense")
    with session.run(opened, {"candidate": opened.coordinate, "to": to}, needed) as run:
        written = str(run.directory)
        if exporter is None:
            file = gguf_file(opened, plan, run.directory, session)
            numbers, warnings, written = file.numbers, file.warnings, str(file.path)
        else:
            transcode(opened, plan, exporter, run.directory, quiet=options.quiet)
            parity = verified(run.directory, session)
            numbers = {"bits_per_weight": plan.bits_per_weight, "bytes": plan.bytes, "parity": parity}
            warnings = []
        record = session.record(
            coordinates,
            {**numbers, "checkpoint": written, "to": to},
            subject={"candidate": opened.label, "checkpoint": written},
            warnings=warnings,
        )
        return finish(run, record, (f"{opened.label} as {to} in {written}", *warnings))
