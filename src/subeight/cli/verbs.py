"""One function for each verb: its own options and the shared ones, handed to `subeight.verbs`."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from subeight import verbs
from subeight.cli.checks import CHECKS
from subeight.cli.diagnosis import diagnose
from subeight.cli.mapping import MAPPING
from subeight.cli.options import COMPUTE, EVALUATION, RUN, STREAMING, Cluster, Evals, Name, Workers, takes
from subeight.cli.running import RUNNING
from subeight.sweep import Where
from subeight.verbs.options import Options
from subeight.verbs.session import Result


@takes(*RUN, *COMPUTE, "calibration", "eval_tokens")
def inspect(model: Name, evals: Evals = None, *, options: Options) -> Result:
    """The outlier x-ray; with --evals also what that text reaches and the calibration text does not."""
    chosen = options if evals is None else replace(options, evals=tuple(evals))
    return verbs.inspect(model, options=chosen, compare_text=evals is not None)


@takes(*RUN, *COMPUTE, *STREAMING, "calibration", "per_expert", "pool", "dry_run", "yes")
def quantize(
    model: Name,
    recipe: Annotated[str, typer.Option("--recipe", help="a shipped name or a YAML file")] = "gptq-int4",
    engine: Annotated[str, typer.Option("--engine", help="vllm, sglang, transformers, gguf or any")] = "any",
    to: Annotated[
        str | None,
        typer.Option("--to", help="compressed-tensors, subeight, dense or gguf; the first that holds the recipe"),
    ] = None,
    *,
    options: Options,
) -> Result:
    """A low-bit checkpoint out of a model and a recipe; the same command resumes after an interruption."""
    return verbs.quantize(model, recipe, engine=engine, to=to, options=options)


@takes(*RUN, *COMPUTE, *STREAMING, *EVALUATION, "generate", "tasks", "across", "dry_run")
def evaluate(
    candidate: Name,
    against: Annotated[str, typer.Option("--against", help="the full-precision baseline")],
    workers: Workers = None,
    cluster: Cluster = None,
    *,
    options: Options,
) -> Result:
    """KL, perplexity, agreement and flips of a candidate against its exact baseline, with intervals."""
    return verbs.evaluate(candidate, against, workers=Where(workers, cluster), options=options)


@takes(*RUN, *COMPUTE, *STREAMING, *EVALUATION, "calibration", "generate", "across", "dry_run", "yes")
def compare(
    model: Name,
    recipes: Annotated[str, typer.Option("--recipes", help="names or files, separated by commas")],
    shared: Annotated[bool, typer.Option("--shared", help="one pass of the baseline's statistics for all")] = False,
    workers: Workers = None,
    cluster: Cluster = None,
    *,
    options: Options,
) -> Result:
    """Several recipes on one model and one text: one table, with paired intervals."""
    names = [name.strip() for name in recipes.split(",") if name.strip()]
    return verbs.compare(model, names, shared=shared, workers=Where(workers, cluster), options=options)


@takes("out", "threads", "quiet")
def export(
    checkpoint: Name,
    to: Annotated[str, typer.Option("--to", help="compressed-tensors, subeight, dense or gguf")] = "dense",
    *,
    options: Options,
) -> Result:
    """A quantized checkpoint for another target, the codes unchanged."""
    return verbs.export(checkpoint, to=to, options=options)


def report(
    runs: Annotated[list[str], typer.Argument(help="run directories or record files")],
    out: Annotated[Path | None, typer.Option("--out", help="the page (default report.html)")] = None,
) -> None:
    """One self-contained HTML page out of any number of runs."""
    print(f"report {verbs.report(runs, out=out)}", file=sys.stderr)


COMMANDS: dict[str, Callable[..., int | None]] = {
    "inspect": inspect,
    "quantize": quantize,
    "evaluate": evaluate,
    "compare": compare,
    "export": export,
    "report": report,
    "diagnose": diagnose,
    **CHECKS,
    **MAPPING,
    **RUNNING,
}
