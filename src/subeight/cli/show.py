"""Records for a person's eyes: words and tables on standard error, the record itself on standard output if asked."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from subeight.verbs.session import Result


def show(result: Result, *, as_json: bool) -> None:
    """Prints what a verb gave back; the last line names the record and the report."""
    console = _console()
    plan = result.numbers.get("plan")
    if result.directory is None and plan:
        console.print(plan_table(plan["sites"]))
    if result.record.kind == "compare" and "rows" in result.numbers:
        console.print(comparison_table(result.numbers["rows"]))
    for warning in result.record.warnings:
        console.print(f"warning: {escape(warning)}", highlight=False, soft_wrap=True)
    for line in result.lines:
        console.print(escape(line), highlight=False, soft_wrap=True)
    forecast = result.numbers.get("predicted") or {}
    if "seconds" in forecast:
        console.print(f"predicted: {escape(json.dumps(forecast))}", highlight=False, soft_wrap=True)
    if as_json:
        sys.stdout.write(result.record.to_json())
    if result.directory is not None:
        print(f"record {result.directory / 'record.json'} report {result.report}", file=sys.stderr)


def words(what: str | Table) -> None:
    """Words or a table for a person, on standard error."""
    _console().print(what, highlight=False, soft_wrap=isinstance(what, str), markup=False)


def _console() -> Console:
    """Standard error; as wide as a table wants where it is no terminal."""
    console = Console(stderr=True)
    return console if console.is_terminal else Console(stderr=True, width=240)


def plan_table(sites: Sequence[Mapping[str, Any]]) -> Table:
    """What will happen to every linear, and why."""
    table = Table("linear", "shape", "weights", "inputs", "methods", "bits", "bytes", "reason", "runs in")
    for site in sites:
        methods = " ".join(use if isinstance(use, str) else next(iter(use)) for use in site["methods"])
        table.add_row(
            escape(site["name"]),
            "x".join(map(str, site["shape"])),
            site["weights"] or site["dtype"],
            site["inputs"] or "-",
            methods or "-",
            f"{site['bits']:.2f}",
            f"{site['bytes']:,}",
            escape(site["reason"]),
            " ".join(site["runs_in"]),
        )
    return table


def comparison_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """One line for each recipe, best first."""
    table = Table("recipe", "bits", "MB", "KL", "95 %", "ppl", "baseline", "top-1", "seconds")
    for row in sorted(rows, key=lambda row: row.get("kl") or 0.0):
        low, high = row.get("kl_ci") or (None, None)
        table.add_row(
            escape(row["recipe"]),
            f"{row['bits_per_weight']:.2f}",
            f"{row['bytes'] / 1e6:.1f}",
            _shown(row.get("kl"), ".4f"),
            "-" if low is None else f"{low:.4f} to {high:.4f}",
            _shown(row.get("ppl"), ".2f"),
            _shown(row.get("ppl_baseline"), ".2f"),
            _shown(row.get("top1"), ".3f"),
            f"{row['quantize_seconds']:.0f}",
        )
    return table


def _shown(value: float | None, how: str) -> str:
    return "-" if value is None else format(value, how)
