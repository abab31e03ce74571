"""The verbs of the sensitivity map: `allocate`, which spends a budget by it."""

from collections.abc import Callable
from typing import Annotated

import typer

from subeight import verbs
from subeight.cli.options import (
    AsJson,
    Device,
    Dtype,
    EvalTokens,
    MaxMemory,
    Out,
    Quiet,
    Scratch,
    Seed,
    Threads,
    Trust,
    command,
    parse_bytes,
)
from subeight.cli.show import show
from subeight.verbs.options import Options


def allocate(
    map: Annotated[str, typer.Argument(help="the run directory of a map, or its record.json")],
    budget: Annotated[str, typer.Option("--budget", help="for instance '3.5 bits', '90 MB' or 'kl 0.05'")],
    engine: Annotated[str, typer.Option("--engine", help="vllm, sglang, transformers, gguf, subeight or any")] = "any",
    pin: Annotated[list[str] | None, typer.Option("--pin", help="GLOB=FORMAT or GLOB=keep, repeatable")] = None,
    forbid: Annotated[list[str] | None, typer.Option("--forbid", help="GLOB=FORMAT, repeatable")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="quantize by the recipe and measure it")] = False,
    model: Annotated[str | None, typer.Option("--model", help="the map's model, where it lies elsewhere")] = None,
    out: Out = None,
    eval_tokens: EvalTokens = None,
    seed: Seed = 0,
    threads: Threads = None,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    max_memory: MaxMemory = None,
    scratch: Scratch = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    trust_remote_code: Trust = False,
) -> None:
    """A budget spent by a map: an ordinary recipe, why each layer got its bits, and the whole Pareto front."""
    options = Options(
        out=out,
        eval_tokens=eval_tokens,
        seed=seed,
        threads=threads,
        device=device,
        dtype=dtype,
        max_memory=parse_bytes(max_memory),
        scratch=scratch,
        quiet=quiet,
        trust_remote_code=trust_remote_code,
        command=command(),
    )
    done = verbs.allocate(
        map,
        budget,
        engine=engine,
        pins=tuple(pin or ()),
        forbids=tuple(forbid or ()),
        verify=verify,
        model=model,
        options=options,
    )
    show(done, as_json=as_json)


# `map` goes here: its function above, its name in this table.
MAPPING: dict[str, Callable[..., int | None]] = {"allocate": allocate}
