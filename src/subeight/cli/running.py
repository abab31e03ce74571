"""The verbs that run a checkpoint on its kernels and caches: `generate`, `bench`, `kv` and `advise`."""

from collections.abc import Callable
from typing import Annotated

import typer

from subeight import verbs
from subeight.cli.options import AsJson, Device, Dtype, Evals, Name, Out, Quiet, Seed, Threads, Trust, command, numbers
from subeight.cli.show import show
from subeight.verbs.kv import POLICIES
from subeight.verbs.options import Options


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
    seed: Seed = 0,
    threads: Threads = None,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    quiet: Quiet = False,
    as_json: AsJson = False,
    trust_remote_code: Trust = False,
) -> None:
    """An answer by a checkpoint that runs on its codes; the text goes to standard output."""
    options = Options(
        seed=seed,
        threads=threads,
        device=device,
        dtype=dtype,
        quiet=quiet,
        trust_remote_code=trust_remote_code,
        command=command(),
    )
    found = verbs.generate(
        model, prompt, tokens=tokens, temperature=temperature, raw=raw, compiled=compiled, kv=kv, options=options
    )
    if not as_json:
        typer.echo(found.numbers["text"])
    show(found, as_json=as_json)


def bench(
    model: Name,
    batch: Annotated[str, typer.Option("--batch", help="sequences at once, for instance 1,8")] = "1",
    prompt: Annotated[int, typer.Option("--prompt", min=1, help="tokens that are read")] = 256,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="tokens that are written")] = 32,
    rounds: Annotated[int, typer.Option("--rounds", min=1)] = 5,
    out: Out = None,
    seed: Seed = 0,
    threads: Threads = None,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    quiet: Quiet = False,
    as_json: AsJson = False,
    trust_remote_code: Trust = False,
) -> None:
    """How fast a checkpoint reads and writes on its kernels, beside the same weights dequantized."""
    options = Options(
        out=out,
        seed=seed,
        threads=threads,
        device=device,
        dtype=dtype,
        quiet=quiet,
        trust_remote_code=trust_remote_code,
        command=command(),
    )
    found = verbs.bench(
        model, batch=numbers("--batch", batch), prompt=prompt, tokens=tokens, rounds=rounds, options=options
    )
    show(found, as_json=as_json)


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
    out: Out = None,
    evals: Evals = None,
    seed: Seed = 0,
    threads: Threads = None,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    quiet: Quiet = False,
    as_json: AsJson = False,
    trust_remote_code: Trust = False,
) -> None:
    """What keys and values in few bits cost: divergence, perplexity, retrieval and memory, by policy and context."""
    options = Options(
        out=out,
        evals=tuple(evals or ("builtin",)),
        seed=seed,
        threads=threads,
        device=device,
        dtype=dtype,
        quiet=quiet,
        trust_remote_code=trust_remote_code,
        command=command(),
    )
    found = verbs.kv(
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
    show(found, as_json=as_json)


def advise(
    model: Name,
    batch: Annotated[str, typer.Option("--batch", help="sequences at once, for instance 1,8,64")] = "1,8",
    context: Annotated[int, typer.Option("--context", min=1, help="tokens of the prompt")] = 1024,
    goal: Annotated[str, typer.Option("--goal", help="latency, throughput or memory")] = "latency",
    out: Out = None,
    seed: Seed = 0,
    threads: Threads = None,
    device: Device = "cpu",
    dtype: Dtype = "bfloat16",
    quiet: Quiet = False,
    as_json: AsJson = False,
    trust_remote_code: Trust = False,
) -> None:
    """Which scheme pays on this machine for this model: measured on one real block, beside a roofline."""
    options = Options(
        out=out,
        seed=seed,
        threads=threads,
        device=device,
        dtype=dtype,
        quiet=quiet,
        trust_remote_code=trust_remote_code,
        command=command(),
    )
    found = verbs.advise(model, batch=numbers("--batch", batch), context=context, goal=goal, options=options)
    show(found, as_json=as_json)


RUNNING: dict[str, Callable[..., None]] = {"advise": advise, "generate": generate, "bench": bench, "kv": kv}
