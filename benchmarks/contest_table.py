"""One table of the contest's cells: `results/contest.json`, and the lines of README.

    python -m benchmarks.contest_table

Our rows are means over their calibration seeds. Ratios are paired by window, of the means over seeds. Seconds are those
of cells on two threads: others ran beside other work, or were stopped for a while. A cell that is kept of other code
than today's counts too, where it is the only one of its kind; `current` says which are of today's.
"""

from collections import defaultdict
from typing import Any

import numpy as np
from benchmarks.common import write_result
from benchmarks.contest import EVALUATION, LENGTH, SEQUENCES, Cell, cells, kept, kept_before

from subeight.evals.stats import paired_ratio

WIDTHS = ("W4", "W3", "W2")
OWN_RUNTIME = ("w8a8-rotated", "w4a4")  # stored by our own method
QUICK = ("gptq", "gptaq", "awq", "awq_lite")  # what the fast recipes are held against
Row = dict[str, Any]


def main() -> None:
    """Reads what is kept, prints the table, writes the result."""
    rows = _rows()
    numbers = {"rows": rows, "ratios": {width: found for width in WIDTHS if (found := _ratios(rows, width))}}
    context = f"wikitext-2 train, {SEQUENCES} x {LENGTH} at random places, unless a row has fewer"
    write_result("contest", numbers, model="smollm2", calibration=context, evaluation=EVALUATION)
    print("\n".join(_lines(rows)))


def _rows() -> list[Row]:
    """One row for each method at each width, in order of width and KL."""
    found: dict[tuple[str, str, str], list[tuple[Cell, Row]]] = defaultdict(list)
    for cell in cells():
        content = kept(cell)
        current = content is not None
        if content := content or kept_before(cell):
            found[cell.width, cell.tool, cell.method].append((cell, content | {"current": current}))
    rows = [_row(*key, runs) for key, runs in found.items()]
    widths = list(dict.fromkeys(width for width, _, _ in found))
    return sorted(rows, key=lambda row: (widths.index(row["width"]), row["kl"]))


def _row(width: str, tool: str, method: str, runs: list[tuple[Cell, Row]]) -> Row:
    most = max(content["threads"] for _, content in runs)
    return {
        "width": width,
        "tool": tool,
        "method": method,
        "bits": runs[0][1]["bits"],
        "sequences": runs[0][0].sequences,
        "kl": float(np.mean([content["kl"] for _, content in runs])),
        "kl_by_seed": [content["kl"] for _, content in runs],
        "kl_by_window": np.mean([content["kl_by_window"] for _, content in runs], 0).tolist(),
        "ppl": float(np.mean([content["ppl"] for _, content in runs])),
        "seconds": [content["seconds"] for _, content in runs if content["threads"] == most],
        "threads": most,
        "machine": sorted({content["machine"] for _, content in runs}),
        "own_runtime": method in OWN_RUNTIME,
        "current": all(content["current"] for _, content in runs),
    }


def _ratios(rows: list[Row], width: str) -> dict[str, Any]:
    """Our best recipe over the best peer, our fast one over every peer's GPTQ and AWQ."""
    peers = [row for row in rows if row["width"] == width and row["tool"] != "ours"]
    ours = {row["method"].split("-")[0]: row for row in rows if row["width"] == width and row["tool"] == "ours"}
    found = {}
    if peers and "best" in ours:
        found["best"] = _ratio(ours["best"], min(peers, key=lambda row: row["kl"]))
    for peer in peers:
        if "fast" in ours and peer["method"] in QUICK:
            found[f"fast over {peer['tool']} {peer['method']}"] = _ratio(ours["fast"], peer)
    return found


def _ratio(ours: Row, peer: Row) -> dict[str, Any]:
    windows = np.arange(len(ours["kl_by_window"]))
    ratio = paired_ratio(np.asarray(ours["kl_by_window"]), np.asarray(peer["kl_by_window"]), windows)
    comparable = ours["threads"] == peer["threads"] == 2 and ours["machine"] == peer["machine"]
    return {
        "peer": f"{peer['tool']} {peer['method']}",
        "kl": ratio.value,
        "kl_ci": ratio.ci,
        "seconds": float(np.mean(ours["seconds"]) / np.mean(peer["seconds"])) if comparable else None,
    }


def _lines(rows: list[Row]) -> list[str]:
    head = [
        "| | by | bits | KL to the baseline | of each seed | perplexity | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    return head + [_line(row) for row in rows]


def _line(row: Row) -> str:
    who = f"Subeight `{row['method']}`" if row["tool"] == "ours" else f"{row['tool']} {row['method']}"
    notes = [f"{row['sequences']} sequences"] if row["sequences"] != SEQUENCES else []
    notes += ["our own runtime"] if row["own_runtime"] else []
    seeds = " ".join(f"{kl:.3g}" for kl in row["kl_by_seed"]) if len(row["kl_by_seed"]) > 1 else ""
    cells = (
        row["width"],
        who + (f" ({', '.join(notes)})" if notes else ""),
        f"{row['bits']:.2f}",
        f"{row['kl']:.3g}",
        seeds,
        f"{row['ppl']:.2f}",
        f"{np.mean(row['seconds']):.0f}" if row["threads"] == 2 else "",
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
