"""`diagnose` on the command line."""

from typing import Annotated

import typer

from subeight import verbs
from subeight.cli.options import COMPUTE, RUN, STREAMING, Name, takes
from subeight.verbs.diagnose import Complaint
from subeight.verbs.options import Options
from subeight.verbs.session import Result


@takes(*RUN, *COMPUTE, *STREAMING, "eval_tokens", "eval_window", "dry_run")
def diagnose(
    candidate: Name,
    baseline: Annotated[str | None, typer.Option("--baseline", help="full-precision model (default: guessed)")] = None,
    prompts: Annotated[str | None, typer.Option("--prompts", help="failing prompts, text or JSONL")] = None,
    control: Annotated[str | None, typer.Option("--control", help="healthy prompts, text or JSONL")] = None,
    calibration: Annotated[str | None, typer.Option("--calibration", help="what it was calibrated on")] = None,
    last_good: Annotated[str | None, typer.Option("--last-good", help="an older checkpoint or a lock")] = None,
    served: Annotated[str | None, typer.Option("--served", help="URL of an OpenAI-compatible server")] = None,
    metric: Annotated[str, typer.Option("--metric", help="kl, nll, choices or check:COMMAND")] = "kl",
    replay: Annotated[
        bool, typer.Option("--replay", help="rebuild the lock's stack, flip packages one by one")
    ] = False,
    python: Annotated[str | None, typer.Option("--python", help="interpreter that runs the packed model")] = None,
    only: Annotated[list[str] | None, typer.Option("--only", help="a suspect to examine, repeatable")] = None,
    thorough: Annotated[bool, typer.Option("--thorough", help="examine every suspect, whatever is found")] = False,
    *,
    options: Options,
) -> Result:
    """Why a quantized model got worse: what is guilty, by experiment, and what mends it."""
    complaint = Complaint(
        prompts=prompts,
        control=control,
        calibration=calibration,
        last_good=last_good,
        served=served,
        metric=metric,
        replay=replay,
        python=python,
        only=tuple(only or ()),
        thorough=thorough,
    )
    return verbs.diagnose(candidate, baseline, complaint=complaint, options=options)
