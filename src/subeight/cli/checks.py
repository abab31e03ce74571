"""The verbs that hold a result and check it again: `lock` and `verify`."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from subeight import verbs
from subeight.cli.options import AsJson, Name, Out, Quiet, Threads, Trust, command
from subeight.cli.show import show
from subeight.verbs.options import Options

Baseline = Annotated[str | None, typer.Option("--baseline", help="the full-precision model, where it lies elsewhere")]

FailOn = Annotated[str | None, typer.Option("--fail-on", help="for instance kl>0.02,top1<0.97,german:kl>0.05")]


def lock(
    run: Annotated[str, typer.Argument(help="the run directory of an evaluate, or of a quantize")],
    out: Annotated[Path | None, typer.Option("--out", help="the file (default subeight.lock)")] = None,
    candidate: Annotated[str | None, typer.Option("--candidate", help="where the candidate lies elsewhere")] = None,
    baseline: Baseline = None,
    tolerance: Annotated[str | None, typer.Option("--tolerance", help="for instance kl=0.01,top1=0.005")] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    trust_remote_code: Trust = False,
) -> None:
    """A measured run as a small file for git, which later stacks are verified against."""
    options = Options(out=out, quiet=quiet, trust_remote_code=trust_remote_code, command=command())
    done = verbs.lock(run, candidate=candidate, baseline=baseline, tolerance=tolerance, options=options)
    show(done, as_json=as_json)


def verify(
    candidate: Name,
    lock: Annotated[Path, typer.Option("--lock", help="the file that `subeight lock` wrote")],
    baseline: Baseline = None,
    fail_on: FailOn = None,
    summary: Annotated[Path | None, typer.Option("--summary", help="write a summary in Markdown here")] = None,
    replay: Annotated[bool, typer.Option("--replay", help="rebuild the old stack, name the guilty package")] = False,
    out: Out = None,
    threads: Threads = None,
    device: Annotated[str | None, typer.Option("--device", help="another device than the lock's")] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    trust_remote_code: Trust = False,
) -> int:
    """The locked evaluation again, on today's stack: pass (0), regressed (1), bad input (2) or undecided (3)."""
    options = Options(out=out, threads=threads, quiet=quiet, trust_remote_code=trust_remote_code, command=command())
    done = verbs.verify(
        candidate,
        lock,
        baseline=baseline,
        fail_on=fail_on,
        summary=summary,
        replay=replay,
        device=device,
        options=options,
    )
    show(done, as_json=as_json)
    return done.exit_status


CHECKS: dict[str, Callable[..., int | None]] = {"lock": lock, "verify": verify}
