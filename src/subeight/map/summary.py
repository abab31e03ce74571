"""What a map says in a few sentences."""

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
    inside = {place["name"] for place in numbers["places"] if place["block"] is not None}
    found = []
    for format, whole in numbers["whole"].items():
        cells = [
            c for c in numbers["cells"] if c["format"] == format and c["view"] == "damage" and c["place"] in inside
        ]
        total = sum(max(0.0, cell["kl"]) for cell in cells)
        if total > 0 and whole["kl"] > _BROKEN * total:
            hope = "; an asymmetric format may hold" if format.endswith(":sym") else ""
            found.append(
                f"All of it in {format} loses {whole['kl']:.3g}, {whole['kl'] / total:.1f} times what its places lose "
                f"alone: in a model as broken as that no budget knows where bits help{hope}."
            )
    return found
