"""The options that several verbs share, with their words of help, and how a verb's function takes them."""

import re
import sys
from collections.abc import Callable
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any

import typer

from subeight.cli.show import show
from subeight.errors import InputError
from subeight.verbs.options import Options
from subeight.verbs.session import Result

Name = Annotated[str, typer.Argument(help="a directory, a .gguf file, a hub id, or smollm2")]
Evals = Annotated[list[str] | None, typer.Option("--evals", help="text or JSONL, repeatable (default builtin)")]
Workers = Annotated[int | None, typer.Option("--workers", help="worker processes, or Ray workers")]
Cluster = Annotated[str | None, typer.Option("--cluster", help="a Ray cluster: host:port, auto or local")]
AsJson = Annotated[bool, typer.Option("--json", help="the record on standard output")]

RUN = ("out", "quiet", "trust_remote_code")
COMPUTE = ("seed", "threads", "device", "dtype")
EVALUATION = ("evals", "eval_tokens", "eval_window")
STREAMING = ("max_memory", "scratch")

# By the field of `Options` that each one sets, in the order in which help shows them: how it is said, and its default.
SHARED: dict[str, tuple[Any, Any]] = {
    "out": (
        Annotated[Path | None, typer.Option("--out", help="run directory (default runs/<verb>-<model>-<hash>)")],
        None,
    ),
    "calibration": (
        Annotated[str | None, typer.Option("--calibration", help="text, data set or self; overrides the recipe")],
        None,
    ),
    "per_expert": (
        Annotated[
            int | None, typer.Option("--per-expert", min=0, help="tokens that each expert of a mixture is to see")
        ],
        None,
    ),
    "pool": (Annotated[str | None, typer.Option("--pool", help="text for experts that are short of them")], None),
    "evals": (Evals, None),
    "eval_tokens": (
        Annotated[int | None, typer.Option("--eval-tokens", min=2, help="at most so many evaluation tokens")],
        None,
    ),
    "eval_window": (Annotated[int, typer.Option("--eval-window", min=2, help="tokens in a window of plain text")], 512),
    "generate": (
        Annotated[int, typer.Option("--generate", min=0, help="prompts answered greedily by both models")],
        0,
    ),
    "tasks": (Annotated[list[str] | None, typer.Option("--tasks", help="lm-eval tasks, repeatable")], None),
    "seed": (Annotated[int, typer.Option("--seed", min=0)], 0),
    "threads": (Annotated[int | None, typer.Option("--threads", min=1)], None),
    "device": (Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:N")], "cpu"),
    "dtype": (Annotated[str, typer.Option("--dtype", help="auto, bfloat16 or float32")], "auto"),
    "max_memory": (Annotated[str | None, typer.Option("--max-memory", help="for instance 2GB")], None),
    "scratch": (
        Annotated[Path | None, typer.Option("--scratch", help="keep activations here instead of in memory")],
        None,
    ),
    "across": (
        Annotated[list[str] | None, typer.Option("--across", help="a coordinate that may differ on purpose")],
        None,
    ),
    "dry_run": (
        Annotated[bool, typer.Option("--dry-run", help="show the plan and what it takes, and stop")],
        False,
    ),
    "yes": (Annotated[bool, typer.Option("--yes", help="do what takes long without asking")], False),
    "quiet": (Annotated[bool, typer.Option("--quiet", help="no progress")], False),
    "trust_remote_code": (
        Annotated[bool, typer.Option("--trust-remote-code", help="run code that comes with a model")],
        False,
    ),
}


def takes(
    *shared: str, answer: str | None = None, **defaults: Any
) -> Callable[[Callable[..., Result]], Callable[..., int]]:
    """Makes a command of a function that ends with `options: Options`: shared options fill it, its result is shown.

    `defaults` are those of this verb alone; the number named `answer` goes to standard output where --json does not.
    """

    def made(verb: Callable[..., Result]) -> Callable[..., int]:
        own = [one for one in signature(verb).parameters.values() if one.name != "options"]
        more = [_parameter(name, defaults) for name in SHARED if name in shared]
        last = Parameter("as_json", Parameter.POSITIONAL_OR_KEYWORD, default=False, annotation=AsJson)

        def run(**given: Any) -> int:
            as_json = given.pop("as_json")
            options = _options({name: given.pop(name) for name in shared})
            result = verb(**given, options=options)
            if answer is not None and not as_json:
                typer.echo(result.numbers[answer])
            show(result, as_json=as_json)
            return result.exit_status

        parameters = [*own, *more, last]
        run.__name__, run.__doc__, run.__module__ = verb.__name__, verb.__doc__, verb.__module__
        run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]  # which typer reads
        run.__annotations__ = {one.name: one.annotation for one in parameters}
        return run

    return made


def _parameter(name: str, defaults: dict[str, Any]) -> Parameter:
    how, usual = SHARED[name]
    return Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, default=defaults.get(name, usual), annotation=how)


def _options(given: dict[str, Any]) -> Options:
    """What was typed as `Options` say it."""
    for name in {"evals", "tasks", "across"} & given.keys():
        given[name] = tuple(given[name] or (("builtin",) if name == "evals" else ()))
    if "max_memory" in given:
        given["max_memory"] = parse_bytes(given["max_memory"])
    return Options(**given, command=("subeight", *sys.argv[1:]))


_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


def parse_bytes(text: str | None) -> int | None:
    """`2GB`, `512MiB` or a number of bytes."""
    if text is None:
        return None
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]I?)?B?\s*", text.upper())
    if found is None or float(found[1]) == 0:
        raise InputError(f"--max-memory was given {text!r}; say for instance 2GB, 512MiB or a number of bytes.")
    return int(float(found[1]) * _UNITS[found[2] or ""])


def numbers(option: str, text: str) -> tuple[int, ...]:
    """`1,8,64`, or `1k,4k` in units of 1024."""
    found = [re.fullmatch(r"([1-9]\d*)(k?)", part.strip().lower()) for part in text.split(",")]
    if not all(found):
        raise InputError(f"{option} was given {text!r}; say whole numbers above 0 with commas between, as in 1,8,64.")
    return tuple(int(one[1]) * (1024 if one[2] else 1) for one in found if one)
