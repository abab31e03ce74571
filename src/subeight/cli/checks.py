"""The verbs that hold a result and check it again: `lock` and `verify`."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from subeight import verbs
from subeight.cli.options import RUN, Name, takes
from subeight.verbs.options import Options
from subeight.verbs.session import Result

Baseline = Annotated[str | None, typer.Option("--baseline", help="the full-precision model, where it lies elsewhere")]

FailOn = Annotated[str | None, typer.Option("--fail-on", help="for instance kl>0.02,top1<0.97,german:kl>0.05")]


@takes("quiet", "trust_remote_code")
def lock(
    run: Annotated[str, typer.Argument(help="the run directory of an evaluate, or of a quantize")],
    out: Annotated[Path | None, typer.Option("--out", help="the file (default subeight.lock)")] = None,
    candidate: Annotated[str | None, typer.Option("--candidate", help="where the candidate lies elsewhere")] = None,
    baseline: Baseline = None,
    tolerance: Annotated[str | None, typer.Option("--tolerance", help="for instance kl=0.01,top1=0.005")] = None,
    *,
    options: Options,
) -> Result:
    """A measured run as a small file for git, which later stacks are verified against."""
    return verbs.lock(
        run, candidate=candidate, baseline=baseline, tolerance=tolerance, options=replace(options, out=out)
    )


@takes(*RUN, "threads")
def verify(
    candidate: Name,
    lock: Annotated[Path, typer.Option("--lock", help="the file that `subeight lock` wrote")],
    baseline: Baseline = None,
    fail_on: FailOn = None,
    summary: Annotated[Path | None, typer.Option("--summary", help="write a summary in Markdown here")] = None,
    replay: Annotated[bool, typer.Option("--replay", help="rebuild the old stack, name the guilty package")] = False,
    device: Annotated[str | None, typer.Option("--device", help="another device than the lock's")] = None,
    *,
    options: Options,
) -> Result:
    """The locked evaluation again, on today's stack: pass (0), regressed (1), bad input (2) or undecided (3)."""
    return verbs.verify(
        candidate,
        lock,
        baseline=baseline,
        fail_on=fail_on,
        summary=summary,
        replay=replay,
        device=device,
        options=options,
    )


CHECKS: dict[str, Callable[..., int]] = {"lock": lock, "verify": verify}
