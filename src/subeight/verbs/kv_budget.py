"""What `kv` buys with a budget: bits for each layer's keys and values, and weights and cache together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from subeight.errors import InputError
from subeight.formats import Format
from subeight.kv.memory import Shape, cache_bytes, crossing, side_bytes
from subeight.kv.policy import SIDES, KVPolicy, stored_bits
from subeight.map.allocation import Allocation, within_cost, within_loss
from subeight.map.budget import Budget
from subeight.map.choices import Option, Unit, falling
from subeight.records.disk import human_bytes

LONGEST = 1 << 24  # tokens up to which a fitting length is looked for


def allocated(
    policy: KVPolicy, rows: Sequence[Mapping[str, Any]], shape: Shape, budget: Budget, length: int, batch: int
) -> tuple[KVPolicy, dict[str, Any]]:
    """The formats of least summed loss within a budget, by a sensitivity map.

    `bits` are those of a number beyond window and sinks, `bytes` of the whole cache at length and batch; of `kl` it is
    the least bytes.

    Raises:
        SubeightError: even the narrowest formats of the map take more, which `require_enough` says before there is one.
    """
    sides = _sides(shape)
    units = _units(policy, rows, shape, length, batch, of_bytes=budget.kind != "bits")
    most = budget.value * len(units) if budget.kind == "bits" else budget.value
    found = within_loss(units, most) if budget.kind == "kl" else within_cost(units, most)
    made = _policy(policy, sides, found)
    bits = [option.bits for option in found.options]
    return made, {
        "budget": budget.text,
        "policy": str(made),
        "bits": sum(bits) / len(bits),
        "bytes": cache_bytes(shape, made, length, batch),
        "expected_kl": found.loss,
        "rows": [
            {"layer": layer, **{side: _text(getattr(made.of_layer(layer), side)) for side in SIDES}}
            for layer in range(len(shape.sliding))
        ],
    }


def require_enough(
    policy: KVPolicy, formats: Sequence[Format], shape: Shape, budget: Budget, weights: int, length: int, batch: int
) -> None:
    """Refuses a budget below what the narrowest formats take beside so many bytes of weights.

    Raises:
        InputError: it is.
    """
    if budget.kind == "bits":
        least = sum(
            min(stored_bits(format, shape.head_dim, axis) for format in formats) for axis in (policy.axis, "token")
        ) / 2  # fmt: skip
        told = f"keys and values take {least:.2f} bits"
    else:
        least = weights + least_bytes(policy, formats, shape, length, batch)
        told = f"weights and cache take {human_bytes(least)}"
    if budget.kind != "kl" and least > budget.value:
        raise InputError(
            f"--budget {budget.text} is not enough: {told} at least; give more, or narrower formats to --map."
        )


def least_bytes(policy: KVPolicy, formats: Sequence[Format], shape: Shape, length: int, batch: int) -> float:
    """What the narrowest of the formats take."""
    return sum(
        min(side_bytes(shape, policy, layer, side, format, length) for format in formats) * batch
        for layer, side in _sides(shape)
    )


def _sides(shape: Shape) -> list[tuple[int, str]]:
    return [(layer, side) for layer in range(len(shape.sliding)) for side in SIDES]


def _units(
    policy: KVPolicy, rows: Sequence[Mapping[str, Any]], shape: Shape, length: int, batch: int, *, of_bytes: bool
) -> list[Unit]:
    """What may be chosen for the keys and the values of each layer; costs are bytes, or bits of a number."""
    losses: dict[tuple[int, str], dict[str, float]] = {}
    for row in rows:
        losses.setdefault((row["layer"], row["side"]), {})[row["format"]] = row["kl"]
    found = []
    for layer, side in _sides(shape):
        axis = policy.axis if side == "keys" else "token"
        mine = losses[layer, side]
        formats = sorted(map(Format.parse, mine), key=lambda format: stored_bits(format, shape.head_dim, axis))
        clean = falling([max(mine[str(format)], 0.0) for format in formats], [1.0] * len(formats))
        options = []
        for format, loss in [*zip(formats, clean, strict=True), (None, 0.0)]:
            bits = stored_bits(format, shape.head_dim, axis)
            held = side_bytes(shape, policy, layer, side, format, length) * batch
            options.append(Option(_text(format), bits, held if of_bytes else bits, loss))
        found.append(Unit((), tuple(options), counted=True))
    return found


def _policy(policy: KVPolicy, sides: Sequence[tuple[int, str]], found: Allocation) -> KVPolicy:
    picks = [None if option.format is None else Format.parse(option.format) for option in found.options]
    full = replace(policy, keys=None, values=None, layers={})
    return full.with_sides(dict(zip(sides, picks, strict=True)))


def _text(format: Format | None) -> str | None:
    return None if format is None else str(format)


def joint(
    cells: Sequence[Mapping[str, Any]],
    policies: Mapping[str, KVPolicy],
    weights: Mapping[str, int],
    shape: Shape,
    memory: float,
    length: int,
    batch: int,
) -> dict[str, Any]:
    """Every checkpoint with every policy against one budget of bytes, by what they lose at the longest context read."""
    at = max(cell["context"] for cell in cells)
    rows = []
    for cell in cells:
        if cell["context"] == at:
            policy, size = policies[cell["policy"]], weights[cell["weights"]]
            cache = cache_bytes(shape, policy, length, batch)
            rows.append(
                {
                    "weights": cell["weights"],
                    "policy": cell["policy"],
                    "weight_bytes": size,
                    "cache_bytes": cache,
                    "fits": size + cache <= memory,
                    "longest": _longest(shape, policy, round(memory) - size, batch),
                    "kl": cell["kl"],
                }
            )
    fitting = [number for number, row in enumerate(rows) if row["fits"]]
    best = min(fitting, key=lambda number: (rows[number]["kl"], rows[number]["cache_bytes"]), default=None)
    return {"memory": memory, "length": length, "batch": batch, "measured_at": at, "rows": rows, "best": best}


def _longest(shape: Shape, policy: KVPolicy, left: int, batch: int) -> int:
    """The most tokens of each sequence whose cache fits into what the weights leave; 0 where they leave nothing."""
    if left < 0:
        return 0
    over = crossing(shape, policy, left, batch, LONGEST)
    return LONGEST if over is None else max(over - 1, 0)


def joint_sentence(found: Mapping[str, Any]) -> str:
    """Which weights and policy to take."""
    asked = f"{human_bytes(found['memory'])} at {found['length']} tokens x {found['batch']}"
    if found["best"] is None:
        least = min(row["weight_bytes"] + row["cache_bytes"] for row in found["rows"])
        return f"Nothing that was measured fits {asked}: the least is {human_bytes(least)}; try fewer bits or tokens."
    best = found["rows"][found["best"]]
    return (
        f"Within {asked}, {best['weights']} weights with {best['policy']} lose least: KL {best['kl']:.4f} at "
        f"{found['measured_at']} tokens, {human_bytes(best['weight_bytes'] + best['cache_bytes'])}; they would fit "
        f"{best['longest']} tokens."
    )
