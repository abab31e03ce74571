"""What a map, and an allocation by it, say in a few sentences."""

from collections import Counter
from typing import Any

_BROKEN = 3.0  # a whole that loses so many times the sum of its places


def sentences(numbers: dict[str, Any]) -> tuple[str, ...]:
    """The most sensitive places of the lowest format, and what the map cost."""
    lowest = numbers["formats"][-1]
    cells = [cell for cell in numbers["cells"] if cell["view"] == "damage" and cell["format"] == lowest]
    worst = sorted(cells, key=lambda cell: -cell["kl"])
    total = sum(cell["kl"] for cell in cells) or 1.0
    few = worst[: max(1, len(worst) // 10)]
    named = ", ".join(f"{cell['place']} ({cell['kl']:.3g})" for cell in worst[:3])
    size = f"{len(numbers['places'])} places in {len(numbers['formats'])} formats"
    return (
        f"{size}, for {numbers['cost']['share']:.1%} of the block runs of the naive way.",
        f"At {lowest} most is lost in {named}; the worst tenth carries {sum(c['kl'] for c in few) / total:.0%} of all.",
        *_broken(numbers),
    )


def _broken(numbers: dict[str, Any]) -> list[str]:
    """The formats in which the whole loses far more than the sum of its places."""
    inside = {p["name"]: p.get("stands_for", 1) for p in numbers["places"] if p["block"] is not None}
    found = []
    for format, whole in numbers["whole"].items():
        cells = [
            c for c in numbers["cells"] if c["format"] == format and c["view"] == "damage" and c["place"] in inside
        ]
        total = sum(inside[cell["place"]] * max(0.0, cell["kl"]) for cell in cells)
        if total > 0 and whole["kl"] > _BROKEN * total:
            hope = "; an asymmetric format may hold" if format.endswith(":sym") else ""
            found.append(
                f"All of it in {format} loses {whole['kl']:.3g}, {whole['kl'] / total:.1f} times what its places lose "
                f"alone: in a model as broken as that no budget knows where bits help{hope}."
            )
    return found


def allocated(numbers: dict[str, Any]) -> tuple[str, ...]:
    """What an allocation chose, what it is expected to lose, and what was measured of it."""
    counts = Counter(choice["format"] or "kept" for choice in numbers["choices"])
    shared = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    expected = numbers["predicted"]
    low, high = expected["kl_ci"]
    lines = [
        f"{numbers['budget']['text']}: {numbers['bits_per_weight']:.3f} bits per weight, {shared}; expected loss "
        f"{expected['kl']:.4g} [{low:.4g}, {high:.4g}].",
        *_timed(numbers["latency"]),
        *(
            f"{row.get('pin') or row.get('forbid')} costs {row['price']:.3g} in expected loss."
            for row in numbers["price_of_pins"]
        ),
    ]
    if seen := numbers.get("verified"):
        inside = "within" if seen["within"] else "outside of"
        lines.append(f"Measured: {seen['kl']:.4g}, {inside} the expected interval, {seen['ratio']:.3g} times expected.")
        lines += [f"A token took {1e3 * seen['seconds']:.1f} ms."] if "seconds" in seen else []
        lines += _corrected(seen["corrected"])
    return (*lines, f"The recipe is {numbers['recipe']}.") if numbers.get("recipe") else tuple(lines)


def _timed(row: dict[str, Any] | None) -> list[str]:
    """What a token is expected to take; nothing where no time was asked about."""
    if row is None:
        return []
    told = f"A token after {row['context']:,} others: {1e3 * row['seconds']:.1f} ms expected"
    return [f"{told}, {1e3 * row['seconds_baseline']:.1f} ms in full precision."]


def _corrected(row: dict[str, Any] | None) -> list[str]:
    """What allocating again with the pairs brought; nothing where it was not tried."""
    if row is None:
        return []
    told = f"Allocated again with the pairs that interact, {len(row['changes'])} places change"
    losses = f"{row['kl']:.4g} instead of {row['before']['kl']:.4g}"
    return [f"{told} and it loses {losses}: {'taken' if row['taken'] else 'not taken'}."]
