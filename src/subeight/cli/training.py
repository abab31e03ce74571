"""The verbs that train: `train qat` and `train qlora`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from subeight import verbs
from subeight.cli.options import COMPUTE, EVALUATION, RUN, STREAMING, Name, takes
from subeight.cli.show import words
from subeight.train.adapters import LoraShape
from subeight.train.manifest import FROZEN, QUANTIZED, TRAINED, Manifest
from subeight.train.qlora import Course
from subeight.verbs.learning import Asked
from subeight.verbs.options import Options
from subeight.verbs.session import Result
from subeight.verbs.train_qlora import Material

train = typer.Typer(no_args_is_help=True, help="Training in few bits: codes themselves, or adapters on them.")


@train.command("qat")
@takes(*RUN, *COMPUTE, *STREAMING, *EVALUATION, "dry_run")
def qat(
    model: Name,
    recipe: Annotated[
        str, typer.Option("--recipe", help="of the post-training result that it begins with")
    ] = "best-int2",
    data: Annotated[str, typer.Option("--data", help="text to learn from (docs/text.md)")] = "builtin",
    start: Annotated[str | None, typer.Option("--start", help="begin with this checkpoint of `quantize`")] = None,
    only: Annotated[str, typer.Option("--only", help="all, culprits (at most 3 bits), or a glob of linears")] = "all",
    tokens: Annotated[int | None, typer.Option("--tokens", min=1, help="of the data (default all)")] = None,
    length: Annotated[int, typer.Option("--length", min=2, help="tokens of a sequence")] = 512,
    epochs: Annotated[int, typer.Option("--epochs", min=1)] = 1,
    batch: Annotated[int, typer.Option("--batch", min=1, help="sequences of a step")] = 4,
    rate: Annotated[float, typer.Option("--rate", min=0.0, help="the first step, in codes")] = 0.004,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="activations anew in the backward pass")
    ] = False,
    codes: Annotated[
        bool | None,
        typer.Option("--codes/--no-codes", help="learn codes (default: if the text can tell 1 %)"),
    ] = None,
    blockwise: Annotated[bool, typer.Option(help="codes are tuned block by block first")] = False,
    *,
    options: Options,
) -> Result:
    """Codes, scales and norms trained through the rounding, at the same bits. The same command resumes."""
    asked = Asked(only, tokens, epochs, length, batch, rate, checkpointing, codes, blockwise)
    tell = None if options.quiet else words
    return verbs.train_qat(model, recipe, data=data, start=start, asked=asked, tell=tell, options=options)


@train.command("qlora")
@takes(*RUN, *COMPUTE, *STREAMING, "calibration", "eval_tokens", "dry_run")
def qlora(
    model: Name,
    data: Annotated[str, typer.Option("--data", help="JSONL, text or Parquet to learn from (docs/text.md)")],
    recipe: Annotated[str | None, typer.Option("--recipe", help="of the base (default nf4); none if quantized")] = None,
    held_out: Annotated[
        str | None, typer.Option("--held-out", help="what is measured on, if not a part of data")
    ] = None,
    share: Annotated[float, typer.Option("--held-out-share", help="of the documents of --data")] = 0.1,
    length: Annotated[int, typer.Option("--length", min=2, help="tokens of a sequence at most")] = 512,
    baseline: Annotated[str | None, typer.Option("--baseline", help="the 16-bit form of a quantized MODEL")] = None,
    adapter: Annotated[Path | None, typer.Option("--adapter", help="begin with this adapter")] = None,
    rank: Annotated[int, typer.Option("--rank", min=1)] = 16,
    alpha: Annotated[float | None, typer.Option("--alpha", help="default twice the rank")] = None,
    dropout: Annotated[float, typer.Option("--dropout")] = 0.0,
    targets: Annotated[str, typer.Option("--targets", help="all, or for instance q_proj,v_proj")] = "all",
    epochs: Annotated[float, typer.Option("--epochs")] = 3.0,
    steps: Annotated[int | None, typer.Option("--steps", help="updates; overrides --epochs, 0 only measures")] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="sequences at once")] = 8,
    accumulate: Annotated[int, typer.Option("--accumulate", min=1, help="batches of one update")] = 1,
    rate: Annotated[float, typer.Option("--rate", help="the largest learning rate")] = 2e-4,
    save: Annotated[int, typer.Option("--save-every", min=1, help="updates between checkpoints")] = 100,
    recompute: Annotated[bool, typer.Option(help="activations anew in the backward pass: less memory")] = True,
    merge: Annotated[
        str, typer.Option("--merge", help="what is written: best, 16-bit, dequantized, requantized, none")
    ] = "best",
    *,
    options: Options,
) -> Result:
    """LoRA adapters on a packed base; every way of merging them measured. The same command resumes."""
    return verbs.train_qlora(
        model,
        data,
        recipe,
        baseline=baseline,
        adapter=adapter,
        material=Material(held_out, share, length),
        shape=LoraShape(rank, 2.0 * rank if alpha is None else alpha, dropout, _names(targets)),
        course=Course(epochs, steps, batch, accumulate, rate, save=save, recompute=recompute),
        merge=merge,
        tell=None if options.quiet else lambda listed: words(manifest_table(listed)),
        options=options,
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip()) or ("all",)


def manifest_table(listed: Manifest) -> Table:
    """What is quantized, frozen and trained; parameters that differ in their block alone are one row."""
    table = Table("parameter", "times", "shape", "status", "format", "MB", "why")
    for row in listed.summary():
        shape = "x".join(map(str, row["shape"]))
        size = f"{row['bytes'] / 1e6:.2f}"
        table.add_row(
            escape(row["name"]), str(row["times"]), shape, row["status"], row["format"], size, escape(row["reason"])
        )
    table.add_section()
    totals = listed.totals()
    for status in (QUANTIZED, FROZEN, TRAINED, "all"):
        found = totals[status]
        each = f"{8 * found['bytes'] / found['count']:.2f} bits each" if found["count"] else ""
        table.add_row(
            "in all", str(found["parameters"]), f"{found['count']:,}", status, each, f"{found['bytes'] / 1e6:.2f}", ""
        )
    return table
