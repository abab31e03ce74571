"""Records of `map` and `allocate` as their contract has them: a small Llama in four formats, and hostile names."""

import numpy as np

from .fixtures import BLOCKS, BREAKOUT, HOSTILE, MODEL, point, record

FORMATS = {"int8:g64:sym": 8.25, "int4:g64:sym": 4.25, "int3:g64:sym": 3.25, "int2:g64:sym": 2.25}
BASE = dict(zip(FORMATS, (2e-5, 4e-3, 2e-2, 0.16), strict=True))
GROUPS = {
    "self_attn.k_proj+q_proj+v_proj": (552_960, 0.5), "self_attn.o_proj": (331_776, 0.35),
    "mlp.gate_proj+up_proj": (1_769_472, 1.0), "mlp.down_proj": (884_736, 0.9),
}  # fmt: skip
WORST = "model.layers.29.mlp.down_proj"
CATEGORIES = ("prose", "german", HOSTILE)


def places(blocks=BLOCKS, groups=None):
    rows = [
        {"name": f"model.layers.{block}.{name}", "block": block, "kind": "linear", "weights": weights}
        for block in range(blocks)
        for name, (weights, _) in (groups or GROUPS).items()
    ]
    rows.insert(0, {"name": "model.embed_tokens", "block": None, "kind": "embedding", "weights": 28_311_552})
    rows.append({"name": "lm_head", "block": None, "kind": "head", "weights": 28_311_552})
    return [
        row | {"bits": FORMATS, "kept_bits": 16.0, "runs_in": {f: ["gguf", "vllm"] for f in FORMATS}} for row in rows
    ]


def cells(rows, seed=5):
    rng = np.random.default_rng(seed)
    last = max(row["block"] or 0 for row in rows)
    for row in rows:
        block, own = row["block"], rng.lognormal(0, 0.35)
        share = next((share for name, (_, share) in GROUPS.items() if row["name"].endswith(name)), 1.4)
        ends = 1.0 if block is None else 1 + 3 * np.exp(-block / 1.5) + 5 * np.exp((block - last) / 1.2)
        for format, base in BASE.items():
            kl = float(base * share * ends * own * rng.lognormal(0, 0.15) / 6)
            yield cell(
                row["name"], format, "damage", kl, rng, prior=None if block is None else kl * rng.lognormal(0, 0.4)
            )
            if block is not None:
                left = float(whole(format) - kl * rng.lognormal(0.2, 0.3))
                yield cell(row["name"], format, "rescue", left, rng)


def cell(place, format, view, kl, rng, prior=None):
    factors = dict(zip(CATEGORIES, (0.8, 1.4, 1.0), strict=True))
    half = 0.12 * kl if view == "damage" else 0.004 * kl
    return {
        "place": place, "format": format, "view": view, "kl": kl, "kl_ci": [kl - half, kl + half],
        "tokens": int(rng.choice([512, 1024, 2048])), "samples": 8, "prior": None if prior is None else float(prior),
        "output_error": None if prior is None else float(prior * rng.lognormal(0, 1)),
        "categories": {name: kl * factor for name, factor in factors.items()},
    }  # fmt: skip


def whole(format):
    return 22 * BASE[format]


def mapped(blocks=BLOCKS, **changes):
    rows = places(blocks)
    numbers = {
        "formats": list(FORMATS), "by": "group", "metric": "kl", "methods": ["gptq"], "places": rows,
        "cells": list(cells(rows)),
        "whole": {f: {"kl": whole(f), "kl_ci": [0.93 * whole(f), 1.08 * whole(f)], "samples": []} for f in FORMATS},
        "samples": [{"document": 0, "category": "prose", "tokens": 512}],
        "difficulty": {f: [1.0] for f in FORMATS},
        "controls": {"no_swap": 0.0, "floor": {"dtype": "float32", "kl": 3.1e-5},
                     "noise": [{"place": WORST, "format": "int2:g64:sym", "kl": 0.3, "noise_kl": 0.4},
                               {"place": BREAKOUT, "format": "int2:g64:sym", "kl": 0.2, "noise_kl": 0.4}]},
        "cost": {"token_blocks": 5_210_000, "naive_token_blocks": 60_211_200, "share": 0.0865, "cpu_seconds": 1310.0,
                 "workers": 2, "deaths": 1, "rounds": 9},
        "priors": {f: {"prior": 0.93, "output_error": 0.71} for f in FORMATS},
    }  # fmt: skip
    subject = {"model": MODEL, "paths": {"model": MODEL}}
    return record("map", numbers | changes, subject=subject, coordinates=point(), seconds=655.0)


def hostile():
    """A map whose places, formats and methods try to break out."""
    rng = np.random.default_rng(1)
    names = [HOSTILE, BREAKOUT, "%{x}<b>"]
    formats = [f"int4<i>{HOSTILE}", "int2%{y}"]
    return mapped(
        formats=formats, methods=[HOSTILE], metric=f"choices:{HOSTILE}", whole={}, priors={formats[0]: {"prior": 0.1}},
        places=[{"name": name, "block": block, "kind": "linear", "bits": {}} for block, name in enumerate(names)],
        cells=[cell(n, f, "damage", 0.1 * (i + 1), rng, 0.2) for i, n in enumerate(names) for f in formats],
    )  # fmt: skip


def allocated(verified=True, **changes):
    """Half-way between 3 and 4 bits: the sensitive places wider, two of them kept, one pinned, some in doubt."""
    rng = np.random.default_rng(8)
    rows = [row for row in places() if row["block"] is not None]
    damage = {(c["place"], c["format"]): c for c in cells(rows) if c["view"] == "damage"}
    order = sorted(rows, key=lambda row: damage[row["name"], "int2:g64:sym"]["kl"] / row["weights"])
    names = list(FORMATS)
    given = {row["name"]: names[3 - min(3, 4 * at // len(order))] for at, row in enumerate(order)}
    given |= {row["name"]: None for row in order[-2:]}
    choices = [choice(row, given[row["name"]], damage, rng) for row in rows]
    line = [
        {"bits_per_weight": float(b), "bytes": float(b * 13.3e6), "sum": float(9 * 4.4**-b), "kl": float(11 * 4.4**-b),
         "kl_ci": [float(9.6 * 4.4**-b), float(12.6 * 4.4**-b)], "counts": {"int4:g64:sym": 60, HOSTILE: 60}}
        for b in np.linspace(2.25, 8.2, 40)
    ]  # fmt: skip
    rivals = [
        {"name": format, "bits_per_weight": b, "bytes": b * 13.3e6, "kl": whole(format),
         "kl_ci": [0.9 * whole(format), 1.1 * whole(format)], "measured": True}
        for format, b in FORMATS.items()
    ]  # fmt: skip
    rivals.append({"name": "heuristic", "bits_per_weight": 3.5, "bytes": 46e6, "kl": 0.16, "measured": False})
    whole_of = {"name": "measured by the map", "bits_per_weight": 3.1, "bytes": 41e6, "kl": 0.11, "measured": True}
    numbers = {
        "map": {"path": "runs/map", "hash": "abc"}, "budget": {"text": "3.5 bits", "kind": "bits", "value": 3.5},
        "engine": "vllm", "pins": [f"{WORST}=int8:g64:sym"], "forbids": [f"*.{BREAKOUT}=int2:g64:sym"],
        "choices": choices, "bits_per_weight": 3.49, "bytes": 46.4e6,
        "predicted": {"sum": 0.051, "kl": 0.0623, "kl_ci": [0.0538, 0.0714], "additivity": 1.22},
        "front": line, "measured": [whole_of], "rivals": rivals,
        "price_of_pins": [{"pin": f"{WORST}=int8:g64:sym", "price": 0.0021}],
        "verified": {
            "kl": 0.0655, "kl_ci": [0.0601, 0.0712], "within": True, "ratio": 1.05,
            "heldout": {"kl": 0.0702, "kl_ci": [0.0612, 0.08], "within": True}, "additivity": 1.28, "corrected": None,
            "pairs": [{"a": WORST, "b": BREAKOUT, "interaction": -0.0042},
                      {"a": "x", "b": "y", "alone": [0.02, 0.03], "together": 0.061, "interaction": 0.011,
                       "interaction_ci": [0.008, 0.014], "real": True}],
        } if verified else None,
        "recipe": "runs/mixed/recipe.yaml",
    }  # fmt: skip
    return record("allocate", numbers | changes, subject={"model": MODEL}, coordinates=point(), seconds=3.2)


def choice(row, format, damage, rng):
    names, name = list(FORMATS), row["name"]
    wider = None if format is None else (None if format == names[0] else names[names.index(format) - 1])
    bits = FORMATS.get(format, 16.0)
    kl = damage[name, format]["kl"] if format else 0.0
    more = (FORMATS.get(wider, 16.0) - bits) * row["weights"] / 8
    step = {"format": wider, "price": more, "gain": kl - (damage[name, wider]["kl"] if wider else 0)}
    doubts = ["its interval is so wide that the choice changes within it", f"`{HOSTILE}` loses 3 times the average"]
    return {
        "place": name, "format": format, "bits": bits, "bytes": bits * row["weights"] / 8, "kl": kl,
        "kl_ci": [0.9 * kl, 1.1 * kl] if format else None, "next": step if format else None,
        "reason": f"At `{format or 'kept'}` it loses {kl:.2g}; a byte more gains less here than in places that got it.",
        "doubts": doubts[: int(rng.integers(1, 3))] if rng.random() < 0.08 else [],
    }  # fmt: skip
