"""Records of `kv` as the verb writes them: a small Llama, four policies, two checkpoints, and hostile names."""

from itertools import pairwise

import numpy as np

from subeight.advise.kv_findings import findings
from subeight.advise.serving import serving_flags
from subeight.kv.memory import Shape, cache_bytes, crossing, mean_bits
from subeight.kv.policy import KVPolicy
from subeight.verbs.kv_budget import joint, joint_sentence

from .fixtures import BREAKOUT, HOSTILE, MODEL, point, record

LAYERS = 30
SHAPE = Shape(heads=3, head_dim=64, sliding=(None,) * LAYERS)
POLICIES = {str(KVPolicy.parse(text)): KVPolicy.parse(text) for text in
            ("none", "int8:token,axis=token", "int4:g64", "int2:g32:asym")}  # fmt: skip
LOSS = dict(zip(POLICIES, (0.0, 2.1e-4, 4.7e-3, 0.19), strict=True))
WEIGHTS = {"full": 269_000_000, "runs/smollm2-int4": 113_000_000}
CONTEXTS = (1024, 4096)
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
FORMATS = ("int8:g64:sym", "int4:g64:sym", "int2:g64:sym")
BASE = dict(zip(FORMATS, (1.1e-6, 2.4e-5, 9e-4), strict=True))
ALLOCATED, BUDGET = "allocated 3 bits", 6e8


def cell(weights, policy, context, kl, rng, cache):
    parts = np.linspace(0, context, 5).astype(int).tolist()
    growth = [0.6, 0.9, 1.1, 1.4] if "int2" not in policy else [0.2, 0.5, 1.0, 2.3]
    ppl = 17.6 * np.exp(0.35 * kl)
    right = {"none": 1.0, "int2:g32:asym": 0.35}.get(policy, 0.95) - (0.1 if weights != "full" else 0)
    asked = [
        {"numbers": count, "depth": depth, "asked": 2,
         "found": int(rng.binomial(2, min(1, right if count == 4 else right + 0.1)))}
        for count in (1, 4) for depth in DEPTHS
    ]  # fmt: skip
    share = sum(row["found"] for row in asked) / 20
    return {
        "weights": weights, "policy": policy, "context": context, "kl": kl,
        "kl_ci": [kl * 0.9, kl * 1.12] if kl else [0.0, 0.0],
        "kl_by_place": [
            {"from": a, "to": b, "mean": kl * g} for (a, b), g in zip(pairwise(parts), growth, strict=True)
        ],
        "ppl": ppl, "ppl_ci": [ppl * 0.93, ppl * 1.08],
        "nll_by_place": [{"from": a, "to": b, "mean": 2.9} for a, b in pairwise(parts)],
        "cache_bytes": cache,
        "retrieval": {"share": share, "share_ci": [max(0, share - 0.19), min(1, share + 0.1)], "cells": asked},
        "agreement": float(np.exp(-9 * kl)),
    }  # fmt: skip


def cells(policies=POLICIES, losses=LOSS, contexts=CONTEXTS):
    rng = np.random.default_rng(4)
    return [
        cell(weights, name, context, losses[name] * (context / 1024) ** 0.3 + (0.031 if weights != "full" else 0),
             rng, cache_bytes(SHAPE, policy, context))
        for context in contexts for weights in WEIGHTS for name, policy in policies.items()
    ]  # fmt: skip


def memory(policies=POLICIES, batch=8):
    rows = [
        {"policy": name, "bits": list(mean_bits(SHAPE, policy)),
         "bytes": {str(context): cache_bytes(SHAPE, policy, context, batch) for context in CONTEXTS},
         "outweighs_from": {weights: crossing(SHAPE, policy, size, batch) for weights, size in WEIGHTS.items()}}
        for name, policy in policies.items()
    ]  # fmt: skip
    return {"batch": batch, "weights": WEIGHTS, "rows": rows}


def layer_map():
    rng = np.random.default_rng(6)
    rows = []
    for layer in range(LAYERS):
        for side in ("keys", "values"):
            for format, base in BASE.items():
                kl = base * (3 if side == "keys" else 1) * (1 + 4 * np.exp(-layer / 2)) * float(rng.lognormal(0, 0.6))
                rows.append({"layer": layer, "side": side, "format": format, "kl": kl, "kl_ci": [kl * 0.8, kl * 1.3]})
    return {"context": 1024, "rows": rows}


def granted(rows):
    """The third of the keys and values that loses most in 8 bits, a third in 4, the others in 2; two in full."""
    worst = sorted((row for row in rows if row["format"] == FORMATS[2]), key=lambda row: -row["kl"])
    given = {(row["layer"], row["side"]): None if rank < 2 else FORMATS[min(2, rank // 12)]
             for rank, row in enumerate(worst)}  # fmt: skip
    known = {(row["layer"], row["side"], row["format"]): row["kl"] for row in rows}
    return {
        "name": ALLOCATED, "budget": "3 bits", "policy": "none,0.keys=int8:g64:sym", "bits": 2.98, "bytes": 11_200_000,
        "expected_kl": sum(known[(*key, format)] for key, format in given.items() if format),
        "rows": [{"layer": n, "keys": given[n, "keys"], "values": given[n, "values"]} for n in range(LAYERS)],
    }  # fmt: skip


def plain(**changes):
    """Policies apart from the weights and crossed with them, and no more."""
    read = cells()
    serving = {name: [flags.numbers() for flags in serving_flags(policy)] for name, policy in POLICIES.items()}
    numbers = {"cells": read, "memory": memory(), "serving": serving, "findings": findings(read)}
    return _record(numbers | changes)


def whole(**changes):
    """The same with a map, an allocation and a budget of bytes."""
    mapped = layer_map()
    made = granted(mapped["rows"])
    policies = POLICIES | {ALLOCATED: KVPolicy.parse("int2:g64,0-9.keys=int4:g64,0-3.values=int8:g64")}
    read = cells(policies, LOSS | {ALLOCATED: 1.2 * made["expected_kl"]})
    asked = joint(read, policies, WEIGHTS, SHAPE, BUDGET, 8192, 8)
    serving = {name: [flags.numbers() for flags in serving_flags(policy)] for name, policy in policies.items()}
    numbers = {
        "map": mapped, "allocation": [made], "cells": read, "joint": asked,
        "memory": memory(policies), "serving": serving,
        "findings": [*findings(read), joint_sentence(asked)],
    }  # fmt: skip
    return _record(numbers | changes)


def hostile():
    """Names that a checkpoint, a policy and an engine might have."""
    bad = {"full": HOSTILE, "none": BREAKOUT}
    read = [one | {"weights": bad.get(one["weights"], one["weights"]), "policy": f"%{{x}} {one['policy']} {HOSTILE}"}
            for one in cells()]  # fmt: skip
    kept = memory()
    kept["weights"] = {HOSTILE: 269_000_000}
    kept["rows"] = [
        row | {"policy": f"{row['policy']} {BREAKOUT}", "outweighs_from": {HOSTILE: 9000}} for row in kept["rows"]
    ]
    mapped = layer_map()
    made = granted(mapped["rows"]) | {"name": HOSTILE, "policy": BREAKOUT}
    mapped["rows"] = [row | {"format": f"{row['format']} {HOSTILE}"} for row in mapped["rows"]]
    made["rows"] = [row | {"keys": HOSTILE} for row in made["rows"]]
    asked = joint(cells(), POLICIES, WEIGHTS, SHAPE, BUDGET, 8192, 8)
    asked["rows"] = [row | {"weights": HOSTILE, "policy": BREAKOUT} for row in asked["rows"]]
    return _record({
        "cells": read, "memory": kept, "map": mapped, "allocation": [made], "joint": asked, "findings": [BREAKOUT],
        "serving": {HOSTILE: [{"engine": HOSTILE, "flags": BREAKOUT, "differs": HOSTILE}]},
    })  # fmt: skip


def _record(numbers):
    return record("kv", numbers, subject={"model": MODEL, "weights": list(WEIGHTS)[1:]}, coordinates=point(recipe=None))
