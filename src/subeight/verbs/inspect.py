"""`inspect`: the outlier x-ray of a model, and what calibration text would miss of the evaluation text."""

from subeight.evals.passes import context_length
from subeight.inspect import x_ray
from subeight.models.model import Model
from subeight.probe.coverage import coverage
from subeight.records import Coordinates
from subeight.text import Calibration, CalibrationSpec, calibrate
from subeight.verbs.feeding import coverage_of
from subeight.verbs.options import Options
from subeight.verbs.session import Result, Session, calibration_settings, finish

SEQUENCES, LENGTH = 8, 512


def inspect(model: str, *, options: Options | None = None, compare_text: bool = False) -> Result:
    """Shows where outlier weights and activations are, and what each means for the choice of method.

    With `compare_text`, the evaluation text (`options.evals`) is held against the calibration text: what it reaches
    and calibration does not (channels, ranges, scripts, tokens, experts).
    """
    options = options or Options()
    session = Session("inspect", options)
    opened = session.model(model)
    calibration = shown_text(session, opened)
    evaluation = session.evaluation(opened) if compare_text else None
    coordinates = Coordinates(
        baseline=opened.coordinate,
        calibration=calibration.hash,
        evaluation=evaluation.hash if evaluation else None,
        stack=session.stack.hash,
    )
    with session.run(opened, {"coordinates": coordinates.model_dump()}) as run:
        computing = session.computing
        numbers = x_ray(opened, calibration.ids, dtype=computing.dtype, device=computing.device, quiet=computing.quiet)
        numbers["experts"] = coverage_of(session, opened, calibration)
        numbers["coverage"] = None
        if evaluation is not None:
            numbers["coverage"] = coverage(
                opened,
                calibration.ids,
                evaluation.samples,
                opened.tokenizer(),
                dtype=computing.dtype,
                device=computing.device,
                quiet=computing.quiet,
            )
        warnings = list((numbers["coverage"] or {}).get("warnings", []))
        record = session.record(
            coordinates,
            numbers,
            subject={"model": opened.label},
            settings=calibration_settings(calibration),
            warnings=warnings,
        )
        return finish(run, record, (*numbers["summary"], *warnings))


def shown_text(session: Session, model: Model) -> Calibration:
    """The text on which the x-ray watches the model's inputs."""
    options = session.options
    length = min(LENGTH, context_length(model))
    return calibrate(
        CalibrationSpec(options.calibration or "builtin", SEQUENCES, length, options.seed), model.tokenizer()
    )
