"""The verbs that run a checkpoint on its kernels and caches: `generate`, `bench`, `kv` and `advise`."""

from collections.abc import Callable
from typing import Annotated

import typer

from subeight import verbs
from subeight.cli.options import COMPUTE, RUN, Name, numbers, takes
from subeight.verbs.kv import POLICIES
from subeight.verbs.options import Options
from subeight.verbs.session import Result


@takes("quiet", "trust_remote_code", *COMPUTE, answer="text")
def generate(
    model: Name,
    prompt: Annotated[str, typer.Argument(help="the text that is answered")],
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="at most so many")] = 128,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, help="0 takes the likeliest")] = 0.0,
    raw: Annotated[bool, typer.Option("--raw", help="the prompt as it is, without the chat template")] = False,
    compiled: Annotated[bool, typer.Option("--compile", help="torch.compile and a static cache")] = False,
    kv: Annotated[
        str | None, typer.Option("--kv", help="how keys and values are stored (default: as the recipe)")
    ] = None,
    *,
    options: Options,
) -> Result:
    """An answer by a checkpoint that runs on its codes; the text goes to standard output."""
    return verbs.generate(
        model, prompt, tokens=tokens, temperature=temperature, raw=raw, compiled=compiled, kv=kv, options=options
    )


@takes(*RUN, *COMPUTE)
def bench(
    model: Name,
    batch: Annotated[str, typer.Option("--batch", help="sequences at once, for instance 1,8")] = "1",
    prompt: Annotated[int, typer.Option("--prompt", min=1, help="tokens that are read")] = 256,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="tokens that are written")] = 32,
    rounds: Annotated[int, typer.Option("--rounds", min=1)] = 5,
    *,
    options: Options,
) -> Result:
    """How fast a checkpoint reads and writes on its kernels, beside the same weights dequantized."""
    return verbs.bench(
        model, batch=numbers("--batch", batch), prompt=prompt, tokens=tokens, rounds=rounds, options=options
    )


@takes(*RUN, *COMPUTE, "evals")
def kv(
    model: Name,
    policies: Annotated[
        list[str] | None, typer.Option("--policies", help="for instance int4:g64,window=128,sinks=4; repeatable")
    ] = None,
    contexts: Annotated[str, typer.Option("--contexts", help="tokens, for instance 1024,4096 or 1k,4k")] = "1k,4k",
    weights: Annotated[
        list[str] | None, typer.Option("--weights", help="a low-bit checkpoint to cross with; repeatable")
    ] = None,
    windows: Annotated[int, typer.Option("--windows", min=1, help="windows of text for each context")] = 2,
    retrieval: Annotated[int, typer.Option("--retrieval", min=0, help="prompts for each depth")] = 2,
    written: Annotated[int, typer.Option("--written", min=0, help="tokens of each answer that is compared")] = 32,
    formats: Annotated[
        list[str] | None, typer.Option("--map", help="map each layer's keys and values in this format; repeatable")
    ] = None,
    budget: Annotated[
        str | None, typer.Option("--budget", help="'3 bits' of a number, 'kl 0.01', or '24 GB' of weights and cache")
    ] = None,
    length: Annotated[
        str | None, typer.Option("--length", help="tokens of each sequence, for a budget of bytes")
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="sequences, for bytes of caches")] = 1,
    *,
    options: Options,
) -> Result:
    """What keys and values in few bits cost: divergence, perplexity, retrieval and memory, by policy and context."""
    return verbs.kv(
        model,
        policies=policies or POLICIES,
        contexts=numbers("--contexts", contexts),
        weights=weights or (),
        windows=windows,
        retrieval=retrieval,
        written=written,
        formats=formats or (),
        budget=budget,
        length=None if length is None else numbers("--length", length)[0],
        batch=batch,
        options=options,
    )


@takes(*RUN, *COMPUTE, dtype="bfloat16")
def advise(
    model: Name,
    batch: Annotated[str, typer.Option("--batch", help="sequences at once, for instance 1,8,64")] = "1,8",
    context: Annotated[int, typer.Option("--context", min=1, help="tokens of the prompt")] = 1024,
    goal: Annotated[str, typer.Option("--goal", help="latency, throughput or memory")] = "latency",
    *,
    options: Options,
) -> Result:
    """Which scheme pays on this machine for this model: measured on one real block, beside a roofline."""
    return verbs.advise(model, batch=numbers("--batch", batch), context=context, goal=goal, options=options)


RUNNING: dict[str, Callable[..., int]] = {"advise": advise, "generate": generate, "bench": bench, "kv": kv}
