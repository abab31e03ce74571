"""The verbs of the sensitivity map: `map`, which measures it, and `allocate`, which spends a budget by it."""

from collections.abc import Callable
from typing import Annotated

import typer

from subeight import verbs
from subeight.cli.options import COMPUTE, EVALUATION, RUN, STREAMING, Cluster, Name, Workers, takes
from subeight.sweep import Where
from subeight.verbs.options import Options
from subeight.verbs.session import Result


@takes(*RUN, *COMPUTE, *STREAMING, *EVALUATION, "calibration", "dry_run", eval_tokens=4096, eval_window=128)
def map(
    model: Name,
    formats: Annotated[str, typer.Option("--formats", help="formats, separated by commas")] = "int8,int4,int3,int2",
    recipe: Annotated[str, typer.Option("--recipe", help="whose methods make the codes")] = "rtn-int4",
    by: Annotated[str, typer.Option("--by", help="group (what engines fuse), linear or expert")] = "group",
    every: Annotated[int, typer.Option("--every", min=1, help="measure one block of so many (a sampled map)")] = 1,
    metric: Annotated[str, typer.Option("--metric", help="kl, nll or choices")] = "kl",
    rescue: Annotated[
        str | None, typer.Option("--rescue", help="formats of the other view, or none (default: the lowest)")
    ] = None,
    share: Annotated[float, typer.Option("--share", help="at most this share of the naive way's work")] = 0.1,
    workers: Workers = None,
    cluster: Cluster = None,
    *,
    options: Options,
) -> Result:
    """What every layer loses in every format, alone: where the bits are needed, measured."""
    return verbs.map(
        model,
        formats.split(","),
        recipe=recipe,
        by=by,
        every=every,
        metric=metric,
        rescue=None if rescue is None else [name for name in rescue.split(",") if name not in ("", "none")],
        share=share,
        workers=Where(workers, cluster),
        options=options,
    )


@takes(*RUN, *COMPUTE, *STREAMING, "dry_run")
def allocate(
    map: Annotated[str, typer.Argument(help="the run directory of a map, or its record.json")],
    budget: Annotated[
        str, typer.Option("--budget", help="for instance '3.5 bits', '90 MB', 'kl 0.05' or 'latency 20 ms'")
    ],
    engine: Annotated[str, typer.Option("--engine", help="vllm, sglang, transformers, gguf, subeight or any")] = "any",
    pin: Annotated[list[str] | None, typer.Option("--pin", help="GLOB=FORMAT or GLOB=keep, repeatable")] = None,
    forbid: Annotated[list[str] | None, typer.Option("--forbid", help="GLOB=FORMAT, repeatable")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="quantize by the recipe and measure it")] = False,
    model: Annotated[str | None, typer.Option("--model", help="the map's model, where it lies elsewhere")] = None,
    context: Annotated[int, typer.Option("--context", min=1, help="tokens before the one that is timed")] = 1024,
    *,
    options: Options,
) -> Result:
    """A budget spent by a map: an ordinary recipe, why each layer got its bits, and the whole Pareto front."""
    return verbs.allocate(
        map,
        budget,
        engine=engine,
        pins=tuple(pin or ()),
        forbids=tuple(forbid or ()),
        verify=verify,
        model=model,
        context=context,
        options=options,
    )


MAPPING: dict[str, Callable[..., int]] = {"map": map, "allocate": allocate}
