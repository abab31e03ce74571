"""The scoreboard of the fault benchmark, from the lines that `run.py` wrote.

    python benchmarks/faults/score.py DIR [--markdown FILE]

Writes `benchmarks/results/faults.json` with the hashes of the lines and of what planted them, and prints Markdown.
"""

import argparse
import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks.common import write_result  # noqa: E402
from benchmarks.faults.kinds import HEALTHY  # noqa: E402
from benchmarks.faults.run import SETS, lines  # noqa: E402

LOCAL = ("scales", "zeros", "pair", "block", "head")  # what restoring a few linears repairs


def main() -> None:
    """Reads, scores, writes and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--markdown", type=Path, default=None)
    arguments = parser.parse_args()
    found = {line["case"]: line for line in lines(arguments.directory)}
    board = scoreboard(list(found.values()))
    text = markdown(board)
    write_result("faults", board, lines=hash_of(arguments.directory), generator=hash_of(Path(__file__).parent))
    if arguments.markdown:
        arguments.markdown.write_text(text, encoding="utf-8")
    print(text)


def scoreboard(found: list[dict[str, Any]]) -> dict[str, Any]:
    """All numbers."""
    ran = [line for line in found if line["right"] is not None]
    faulty = [line for line in ran if line["kind"] not in HEALTHY]
    healthy = [line for line in ran if line["kind"] in HEALTHY]
    local = [line for line in faulty if line["kind"] in LOCAL and line["right"] and line.get("recovered") is not None]
    single = [line for line in faulty if "weight_error" in line.get("notes", {}) and "suspects" in line]
    return {
        "asked": sum(count for bases in SETS.values() for counts in bases.values() for count in counts.values()),
        "not_planted": sum(line["right"] is None for line in found),
        "faulty": share(faulty),
        "by_kind": {kind: share([line for line in faulty if line["kind"] == kind]) for kind in kinds(faulty)},
        "by_base": {
            base: share([ln for ln in faulty if ln["base"] == base]) for base in ("dense", "mixtral", "smollm2")
        },
        "false_culprits": {
            "cases": len(healthy),
            "named": sum(not line["right"] for line in healthy),
            "by_kind": {kind: share([line for line in healthy if line["kind"] == kind]) for kind in kinds(healthy)},
        },
        "cost": {name: cost([ln for ln in ran if ln["base"] == name]) for name in ("dense", "mixtral", "smollm2")},
        "single_linear_of_210": {
            "cases": len(single),
            "right": sum(bool(line["right"]) for line in single),
            "evaluations": spread([line["suspects"]["layers"][1] for line in single if "layers" in line["suspects"]]),
            "block_forwards": spread(
                [line["suspects"]["layers"][2] for line in single if "layers" in line["suspects"]]
            ),
        },
        "local_repairs": {
            "cases": len(local),
            "recovered": spread([line["recovered"] for line in local]),
            "of_the_fault": spread([of_the_fault(line) for line in local]),
            "of_the_fault_80_percent": sum(of_the_fault(line) >= 0.8 for line in local),
            "at_most_3_percent_more_bytes": sum(line["bytes_added"] <= 0.03 * line["bytes"] for line in local),
            "bytes_added_share": spread([line["bytes_added"] / line["bytes"] for line in local if line.get("bytes")]),
        },
        "wrong": [{key: line.get(key) for key in ("case", "why")} for line in ran if not line["right"]],
    }


def of_the_fault(line: dict[str, Any]) -> float:
    """What the prescription recovered of the loss that the fault added: the healthy candidate loses the rest."""
    return float(line["recovered"] * line["loss"] / (line["loss"] - line["notes"]["healthy"]))


def kinds(found: list[dict[str, Any]]) -> list[str]:
    """The kinds that occur, in their order."""
    return list(dict.fromkeys(sorted(line["kind"] for line in found)))


def share(found: list[dict[str, Any]]) -> dict[str, Any]:
    """How many were right, with Wilson's 95 % interval."""
    right, count = sum(bool(line["right"]) for line in found), len(found)
    return {"right": right, "cases": count, "share": right / count if count else None, "ci": wilson(right, count)}


def wilson(right: int, count: int, z: float = 1.959964) -> list[float] | None:
    """Wilson's score interval of a share."""
    if not count:
        return None
    p, square = right / count, z * z
    middle = (p + square / (2 * count)) / (1 + square / count)
    half = z / (1 + square / count) * (p * (1 - p) / count + square / (4 * count * count)) ** 0.5
    return [round(max(0.0, middle - half), 4), round(min(1.0, middle + half), 4)]


def spread(values: list[float]) -> dict[str, float] | None:
    """Median, 90th percentile and most."""
    if not values:
        return None
    found = np.percentile(values, [50, 90, 100])
    return {name: round(float(value), 4) for name, value in zip(("p50", "p90", "max"), found, strict=True)}


def cost(found: list[dict[str, Any]]) -> dict[str, Any]:
    """What a diagnosis took."""
    kept = [line for line in found if "evaluations" in line]
    return {key: spread([line[key] for line in kept]) for key in ("evaluations", "block_forwards", "seconds")}


def markdown(board: dict[str, Any]) -> str:
    """The scoreboard as tables."""
    rows = ["| fault | named right | share, 95 % interval |", "|---|---|---|"]
    for kind, found in [*board["by_kind"].items(), ("**all**", board["faulty"])]:
        low, high = found["ci"] or (float("nan"), float("nan"))
        rows.append(
            f"| {kind} | {found['right']} of {found['cases']} | {found['share'] or 0:.0%} [{low:.0%}, {high:.0%}] |"
        )
    false = board["false_culprits"]
    rows += ["", f"False culprits: {false['named']} in {false['cases']} cases without a fault or with spread damage."]
    local = board["local_repairs"]
    if local["recovered"]:
        rows.append(
            f"Local faults repaired: of the loss that the fault added, {local['of_the_fault']['p50']:.0%} recovered "
            f"(median; at least 80 % in {local['of_the_fault_80_percent']} of {local['cases']}), for at most 3 % more "
            f"bytes in {local['at_most_3_percent_more_bytes']} of {local['cases']}."
        )
    rows += [
        "",
        "| model | evaluations p50 / p90 | block forwards p50 / p90 | seconds p50 / p90 |",
        "|---|---|---|---|",
    ]
    for base, found in board["cost"].items():
        cells = [f"{c['p50']:.0f} / {c['p90']:.0f}" if c else "-" for c in found.values()]
        rows.append(f"| {base} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def hash_of(directory: Path) -> str:
    """16 hex digits over the lines or the sources in a directory."""
    digest = hashlib.sha256()
    for path in sorted(p for p in directory.rglob("*") if p.suffix in {".py", ".jsonl", ".safetensors"}):
        if "cases" not in path.parts and "__pycache__" not in path.parts:
            digest.update(path.relative_to(directory).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


if __name__ == "__main__":
    main()
