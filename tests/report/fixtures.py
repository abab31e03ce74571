"""Records as a day of work on a small Llama leaves them, with names in them that try to break out of the page."""

import itertools

import numpy as np

from subeight.records import Coordinates, Record, Stack

HOSTILE = "<script>alert(1)</script>"
BREAKOUT = "</script><img src=x onerror=alert(2)>"
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
BLOCKS = 30
_SHAPES = {
    "self_attn.q_proj": (576, 576), "self_attn.k_proj": (192, 576), "self_attn.v_proj": (192, 576),
    "self_attn.o_proj": (576, 576), "mlp.gate_proj": (1536, 576), "mlp.up_proj": (1536, 576),
    "mlp.down_proj": (576, 1536),
}  # fmt: skip
_GROUPS = {
    "self_attn.q_proj+k_proj+v_proj": 576, "self_attn.o_proj": 576, "mlp.gate_proj+up_proj": 576,
    "mlp.down_proj": 1536,
}  # fmt: skip
_STACK = Stack.today(2, "cpu", {"deterministic": True, "matmul_precision": "highest"}, dtype="bfloat16")


def point(**changes):
    fixed = {
        "baseline": "b41e6d0f5a2c9e77", "recipe": "5f0c2c1f9a7d3e18", "calibration": "77ab01c9d2e4f603",
        "evaluation": "e0a94d55b7c8321f", "stack": _STACK.hash,
    }  # fmt: skip
    return Coordinates(**(fixed | changes))


def record(kind, numbers, *, subject, coordinates=None, **fields):
    fields = {
        "seconds": 41.7,
        "peak_rss_bytes": 1_612_000_000,
        "created": "2026-03-02T10:11:12+00:00",
        "command": ["subeight", kind, "smollm2"],
        "stack": _STACK.contents(),
    } | fields
    return Record(kind=kind, coordinates=coordinates or point(), numbers=numbers, subject=subject, **fields)


def scores(kl, ppl, top1, *, seed=0, spread=0.06):
    """The numbers of one evaluation around a mean KL."""
    rng = np.random.default_rng(seed)
    factors = {"prose": 0.9, "code": 1.25, "german": 1.55, "chat": 0.7}
    categories = {}
    for name, factor in factors.items():
        value = kl * factor * float(rng.uniform(0.92, 1.08))
        categories[name] = {"kl": value, "kl_ci": [value * (1 - 2 * spread), value * (1 + 2.2 * spread)]}
    edges = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
    positions = [{"from": a, "to": b, "kl": kl * (0.8 + 0.9 / (1 + a) ** 0.4)} for a, b in itertools.pairwise(edges)]
    return {
        "kl": kl, "kl_ci": [kl * (1 - spread), kl * (1 + 1.1 * spread)], "kl_p99": kl * 11.3, "kl_max": kl * 61,
        "ppl": ppl, "ppl_ci": [ppl * 0.985, ppl * 1.016], "ppl_baseline": 17.62,
        "top1": top1, "top1_ci": [top1 - 0.006, top1 + 0.006], "tokens": 4096, "samples": 48,
        "categories": categories, "positions": positions,
        "choices": {"accuracy": 0.41, "accuracy_baseline": 0.43, "flips": 9, "mcnemar_p": 0.51, "n": 120},
        "generation": {"agreement": top1 - 0.2, "agreement_ci": [top1 - 0.26, top1 - 0.14], "prompts": 24},
    }  # fmt: skip


def compare(**changes):
    table = [
        ("rtn-int4", 4.25, 56.4e6, 0.1241, 19.9, 0.842, 2.1),
        ("awq-int4", 4.25, 56.4e6, 0.0873, 19.1, 0.868, 25.0),
        ("gptq-int4", 4.25, 56.4e6, 0.0534, 18.4, 0.897, 38.2),
        ("nf4", 4.25, 56.4e6, 0.0896, 19.2, 0.866, 3.0),
        ("gptq-int3", 3.25, 43.1e6, 0.312, 24.7, 0.765, 37.9),
        (f"rtn-int3 {HOSTILE}", 3.25, 43.1e6, 1.482, 71.4, 0.503, 2.0),
    ]
    rows = [
        {
            "recipe": name, "label": name, "bits_per_weight": bits, "bytes": int(size), "checkpoint": None,
            **scores(kl, ppl, top1, seed=index), "quantize_seconds": seconds, "evaluate_seconds": 21.4,
            "peak_rss_bytes": 1_612_000_000,
        }
        for index, (name, bits, size, kl, ppl, top1, seconds) in enumerate(table)
    ]  # fmt: skip
    pairs = [
        {"a": "gptq-int4", "b": "awq-int4", "kl_difference": -0.0339, "kl_difference_ci": [-0.0391, -0.0288]},
        {"a": "awq-int4", "b": "nf4", "kl_difference": -0.0023, "kl_difference_ci": [-0.0071, 0.0022]},
    ]
    numbers = {
        "rows": rows, "best": "gptq-int4", "pairs": pairs,
        "why": "Among the recipes at 4.25 bits it has the lowest KL, and the intervals do not overlap.",
        "settings_note": "demo settings: 16 calibration sequences and 4,096 evaluation tokens. Not for quoting.",
    }  # fmt: skip
    return record(
        "compare", numbers | changes, subject={"model": MODEL}, coordinates=point(recipe=None),
        settings={"eval_tokens": 4096, "eval_window": 512, "seed": 0, "note": BREAKOUT},
        warnings=["There are under 30 documents in `german`, so its interval is a t-interval.", f"Odd: {BREAKOUT}"],
        command=["subeight", "compare", "smollm2", "--recipes", "rtn-int4,awq-int4,gptq-int4,nf4", "--out", HOSTILE],
    )  # fmt: skip


def evaluate(label="gptq-int4", **fields):
    numbers = {"bits_per_weight": 4.25, "bytes": 56_400_000, **scores(0.0534, 18.4, 0.897)}
    return record("evaluate", numbers, subject={"candidate": label, "baseline": MODEL}, **fields)


def quantize():
    rng = np.random.default_rng(1)
    linears = []
    for block in range(BLOCKS):
        for name, (rows, columns) in _SHAPES.items():
            eight = name == "mlp.down_proj" and block in (1, 29)
            error = 0.03 * (1 + block / 20) * float(rng.lognormal(0, 0.18)) * (2.4 if "down" in name else 1)
            linears.append({
                "name": f"model.layers.{block}.{name}", "block": block, "group": f"model.layers.{block}.x",
                "shape": [rows, columns], "format": "int8:g64" if eight else "int4:g64", "methods": ["awq", "gptq"],
                "reason": 'rule "*.down_proj" of blocks 1 and 29' if eight else "every linear of the blocks",
                "runs_in": ["vllm", "sglang", "transformers"], "bits": 8.25 if eight else 4.25,
                "bytes": int(rows * columns * (8.25 if eight else 4.25) / 8),
                "weight_error": 0.11 * float(rng.lognormal(0, 0.05)), "output_error": error / (9 if eight else 1),
            })  # fmt: skip
    linears.append({
        "name": "lm_head", "block": None, "group": "lm_head", "shape": [49152, 576], "format": None, "methods": [],
        "reason": f"tied to the embeddings {HOSTILE}", "runs_in": ["vllm"], "bits": 16.0,
        "bytes": 49152 * 576 * 2, "weight_error": 0.0, "output_error": None,
    })  # fmt: skip
    numbers = {
        "bits_per_weight": 4.31, "bytes": 57_300_000, "linears": linears, "plan": {}, "checkpoint": "demo/best",
        "parity": {"max_abs": 2.1e-4, "bound": 5e-3, "tokens": 512, "compared": "logits"},
    }  # fmt: skip
    return record("quantize", numbers, subject={"model": MODEL, "recipe": "gptq-int4"})


def inspect():
    rng = np.random.default_rng(2)
    linears, inputs = [], []
    for block in range(BLOCKS):
        for name, (rows, columns) in _SHAPES.items():
            reach = float(rng.lognormal(1.9, 0.16)) * (3.1 if name == "mlp.down_proj" and block in (1, 28) else 1)
            tip = min(0.8, 0.02 * reach)
            linears.append({
                "name": f"model.layers.{block}.{name}", "block": block, "group": f"model.layers.{block}.x",
                "shape": [rows, columns], "range_over_rms": reach, "kurtosis": reach * 0.9,
                "error_share": {
                    fmt: {"top0.1%": tip * 0.4 * k, "top1%": tip * k} for fmt, k in (("int4", 1), ("int3", 0.9))
                },
                "error": {"int4": 0.09 * float(rng.lognormal(0, 0.1)), "int3": 0.19 * float(rng.lognormal(0, 0.1))},
                "means": "A few weights stretch every group's scale: set them apart."
                if reach > 14 else "Ordinary: rounding well is enough.",
            })  # fmt: skip
        for group, width in _GROUPS.items():
            inputs.append(_input(rng, f"model.layers.{block}.{group}", block, width))
    summary = [
        "Most linears are ordinary; 2 of 210 stretch their scales far, both `down_proj`.",
        f"Massive activations sit on the first token from block 2 on. {HOSTILE}",
    ]
    coverage = {"warnings": [f"The evaluation has Cyrillic script that calibration never reaches. {BREAKOUT}"]}
    numbers = {"linears": linears, "inputs": inputs, "summary": summary, "coverage": coverage}
    return record("inspect", numbers, subject={"model": MODEL}, coordinates=point(recipe=None, evaluation=None))


def _input(rng, group, block, width):
    massive = group.endswith("down_proj") and block in (1, 2, 28)
    systematic = "q_proj" in group and block % 3 == 0
    ratio = float(rng.lognormal(2.2, 0.25)) * (60 if massive else 3 if systematic else 1)
    channels = sorted(int(c) for c in rng.choice(width, 9, replace=False))
    means = "On the first token only: keep it out of the scale, smoothing will not help."
    return {
        "group": group, "block": block, "absmax": ratio * 0.8, "rms": 0.8, "ratio": ratio,
        "massive": {"channels": channels[:2] if massive else [], "tokens": 0.002, "positions": [0]},
        "systematic": [{"channel": c, "absmax": 9.0, "ratio": 11.0, "tokens": 0.93} for c in channels]
        if systematic else [],
        "means": means if massive else "Large on nearly every token: smooth or rotate." if systematic else "Ordinary.",
    }  # fmt: skip


def unheard_of():
    numbers = {"answer": 42, "rows": [{"a": HOSTILE}], "words": BREAKOUT}
    return record("seance", numbers, subject={"model": MODEL})


def everything():
    return [inspect(), quantize(), compare(), evaluate(), unheard_of()]
