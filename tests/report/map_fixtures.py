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
