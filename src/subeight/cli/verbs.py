"""One function for each verb: its own options and the shared ones, handed to `subeight.verbs`."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from subeight import verbs
from subeight.cli.checks import CHECKS
from subeight.cli.diagnosis import diagnose
from subeight.cli.mapping import MAPPING
from subeight.cli.options import (
    Across,
    AsJson,
    Calibration,
    Cluster,
    Device,
    DryRun,
    Dtype,
    Evals,
    EvalTokens,
    EvalWindow,
    Generate,
    MaxMemory,
    Name,
    Out,
    Quiet,
    Scratch,
    Seed,
    Threads,
    Trust,
    Workers,
    Yes,
    command,
    parse_bytes,
)
from subeight.cli.running import RUNNING
from subeight.cli.show import show
from subeight.sweep import Where
from subeight.verbs.options import Options


def inspect(
    model: Name,
    out: Out = None,
    calibration: Calibration = None,
    evals: Evals = None,
    eval_tokens: EvalTokens = None,
    seed: Seed = 0,
    threads: Threads = None,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    quiet: Quiet = False,
    as_json: AsJson = False,
    trust_remote_code: Trust = False,
) -> None:
    """The outlier x-ray; with --evals also what that text reaches and the calibration text does not."""
    options = Options(
        out=out,
        calibration=calibration,
        evals=tuple(evals or ("builtin",)),
        eval_tokens=eval_tokens,
        seed=seed,
        threads=threads,
        device=device,
        dtype=dtype,
        quiet=quiet,
        trust_remote_code=trust_remote_code,
        command=command(),
    )
    show(verbs.inspect(model, options=options, compare_text=evals is not None), as_json=as_json)


def quantize(
    model: Name,
    recipe: Annotated[str, typer.Option("--recipe", help="a shipped name or a YAML file")] = "gptq-int4",
    engine: Annotated[str, typer.Option("--engine", help="vllm, sglang, transformers, gguf or any")] = "any",
    to: Annotated[
        str | None,
        typer.Option("--to", help="compressed-tensors, subeight, dense or gguf; the first that holds the recipe"),
    ] = None,
    out: Out = None,
    calibration: Calibration = None,
    per_expert: Annotated[
        int | None, typer.Option("--per-expert", min=0, help="tokens that each expert of a mixture is to see")
    ] = None,
    pool: Annotated[str | None, typer.Option("--pool", help="text for experts that are short of them")] = None,
    seed: Seed = 0,
    threads: Threads = None,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    max_memory: MaxMemory = None,
    scratch: Scratch = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
    trust_remote_code: Trust = False,
) -> None:
    """A low-bit checkpoint out of a model and a recipe; the same command resumes after an interruption."""
    options = Options(
        out=out,
        calibration=calibration,
        per_expert=per_expert,
        pool=pool,
        seed=seed,
        threads=threads,
        device=device,
        dtype=dtype,
        max_memory=parse_bytes(max_memory),
        scratch=scratch,
        dry_run=dry_run,
        yes=yes,
        quiet=quiet,
        trust_remote_code=trust_remote_code,
        command=command(),
    )
    show(verbs.quantize(model, recipe, engine=engine, to=to, options=options), as_json=as_json)


def evaluate(
    candidate: Name,
    against: Annotated[str, typer.Option("--against", help="the full-precision baseline")],
    out: Out = None,
    evals: Evals = None,
    eval_tokens: EvalTokens = None,
    eval_window: EvalWindow = 512,
    generate: Generate = 0,
    tasks: Annotated[list[str] | None, typer.Option("--tasks", help="lm-eval tasks, repeatable")] = None,
    seed: Seed = 0,
    threads: Threads = None,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    max_memory: MaxMemory = None,
    scratch: Scratch = None,
    across: Across = None,
    workers: Workers = None,
    cluster: Cluster = None,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
    trust_remote_code: Trust = False,
) -> None:
    """KL, perplexity, agreement and flips of a candidate against its exact baseline, with intervals."""
    options = Options(
        out=out,
        evals=tuple(evals or ("builtin",)),
        eval_tokens=eval_tokens,
        eval_window=eval_window,
        generate=generate,
        tasks=tuple(tasks or ()),
        seed=seed,
        threads=threads,
        device=device,
        dtype=dtype,
        max_memory=parse_bytes(max_memory),
        scratch=scratch,
        across=tuple(across or ()),
        dry_run=dry_run,
        quiet=quiet,
        trust_remote_code=trust_remote_code,
        command=command(),
    )
    show(verbs.evaluate(candidate, against, workers=Where(workers, cluster), options=options), as_json=as_json)


def compare(
    model: Name,
    recipes: Annotated[str, typer.Option("--recipes", help="names or files, separated by commas")],
    shared: Annotated[bool, typer.Option("--shared", help="one pass of the baseline's statistics for all")] = False,
    out: Out = None,
    calibration: Calibration = None,
    evals: Evals = None,
    eval_tokens: EvalTokens = None,
    eval_window: EvalWindow = 512,
    generate: Generate = 0,
    seed: Seed = 0,
    threads: Threads = None,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    max_memory: MaxMemory = None,
    scratch: Scratch = None,
    across: Across = None,
    workers: Workers = None,
    cluster: Cluster = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
    trust_remote_code: Trust = False,
) -> None:
    """Several recipes on one model and one text: one table, with paired intervals."""
    options = Options(
        out=out,
        calibration=calibration,
        evals=tuple(evals or ("builtin",)),
        eval_tokens=eval_tokens,
        eval_window=eval_window,
        generate=generate,
        seed=seed,
        threads=threads,
        device=device,
        dtype=dtype,
        max_memory=parse_bytes(max_memory),
        scratch=scratch,
        across=tuple(across or ()),
        dry_run=dry_run,
        yes=yes,
        quiet=quiet,
        trust_remote_code=trust_remote_code,
        command=command(),
    )
    names = [name.strip() for name in recipes.split(",") if name.strip()]
    show(verbs.compare(model, names, shared=shared, workers=Where(workers, cluster), options=options), as_json=as_json)


def export(
    checkpoint: Name,
    to: Annotated[str, typer.Option("--to", help="compressed-tensors, subeight, dense or gguf")] = "dense",
    out: Out = None,
    threads: Threads = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """A quantized checkpoint for another target, the codes unchanged."""
    options = Options(out=out, threads=threads, quiet=quiet, command=command())
    show(verbs.export(checkpoint, to=to, options=options), as_json=as_json)


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
