"""The options that several verbs share, with their words of help, and how they are read.

A verb's function in `cli/verbs.py`, `cli/checks.py` or `cli/diagnosis.py` annotates its parameters with these.
"""

import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from subeight.errors import InputError

Name = Annotated[str, typer.Argument(help="a directory, a .gguf file, a hub id, or smollm2")]
Out = Annotated[Path | None, typer.Option("--out", help="run directory (default runs/<verb>-<model>-<hash>)")]
Calibration = Annotated[str | None, typer.Option("--calibration", help="text, data set or self; overrides the recipe")]
Evals = Annotated[list[str] | None, typer.Option("--evals", help="text or JSONL, repeatable (default builtin)")]
EvalTokens = Annotated[int | None, typer.Option("--eval-tokens", min=2, help="at most so many evaluation tokens")]
EvalWindow = Annotated[int, typer.Option("--eval-window", min=2, help="tokens in a window of plain text")]
Generate = Annotated[int, typer.Option("--generate", min=0, help="prompts answered greedily by both models")]
Seed = Annotated[int, typer.Option("--seed", min=0)]
Threads = Annotated[int | None, typer.Option("--threads", min=1)]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:N")]
Dtype = Annotated[str, typer.Option("--dtype", help="auto, bfloat16 or float32")]
MaxMemory = Annotated[str | None, typer.Option("--max-memory", help="for instance 2GB")]
Scratch = Annotated[Path | None, typer.Option("--scratch", help="keep activations here instead of in memory")]
Across = Annotated[list[str] | None, typer.Option("--across", help="a coordinate that may differ on purpose")]
Workers = Annotated[int | None, typer.Option("--workers", help="worker processes, or Ray workers")]
Cluster = Annotated[str | None, typer.Option("--cluster", help="a Ray cluster: host:port, auto or local")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="show the plan and what it will take, and stop")]
Yes = Annotated[bool, typer.Option("--yes", help="do what takes long without asking")]
Quiet = Annotated[bool, typer.Option("--quiet", help="no progress")]
AsJson = Annotated[bool, typer.Option("--json", help="the record on standard output")]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="run code that comes with a model")]

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


def command() -> tuple[str, ...]:
    """What was typed, as the record keeps it."""
    return ("subeight", *sys.argv[1:])
