"""Records of `advise` and `bench` as the verbs write them, of a small Llama, and hostile names."""

from dataclasses import asdict

import numpy as np

from subeight.advise.advice import advice
from subeight.advise.machine import Machine
from subeight.advise.schemes import SCHEMES, Sizes, decode, prefill
from subeight.kv.memory import Shape, cache_bytes

from .fixtures import _SHAPES, BLOCKS, BREAKOUT, HOSTILE, MODEL, point, record

MACHINE = Machine("cpu", 2, bandwidth=1.9e10, bf16=2.6e11, int8=4.4e11, call=6e-6)
SIZES = Sizes(tuple(_SHAPES.values()) * BLOCKS, (49152, 576), Shape(3, 64, (None,) * BLOCKS), 9)
BATCHES, CONTEXT = (1, 8), 1024
_KERNELS = {8: ("onednn int8", "onednn int8"), 4: ("ours int4", "dequantize"), 3: ("ours int3", "dequantize")}


def row(scheme, machine, rng, context, batches):
    steps = {str(size): asdict(decode(machine, SIZES, scheme, context, size)) for size in batches}
    prompt = asdict(prefill(machine, SIZES, scheme, context))
    few, many = _KERNELS.get(scheme.weights.code_bits if scheme.weights else 16, ("bf16", "bf16"))
    return {
        "name": scheme.name, "weight_bytes": SIZES.weight_bytes(scheme),
        "cache_bytes": {str(size): cache_bytes(SIZES.cache, scheme.kv, context, size) for size in batches},
        "foretold": {"prefill": prompt, "decode": steps},
        "measured": {
            "prefill_seconds": prompt["seconds"] * float(rng.lognormal(0.4, 0.15)),
            "decode_seconds": {size: step["seconds"] * float(rng.lognormal(0.5, 0.2)) for size, step in steps.items()},
            "kernels": {"few rows": few, "prompt": many},
        },
    }  # fmt: skip


def advise(machine=MACHINE, context=CONTEXT, batches=BATCHES, **changes):
    rng = np.random.default_rng(2)
    rows = [row(scheme, machine, rng, context, batches) for scheme in SCHEMES]
    numbers = {
        "machine": asdict(machine), "context": context, "goal": "latency", "rows": rows,
        "advice": advice(rows, "latency", batches, context),
    }  # fmt: skip
    subject, coordinates = {"model": MODEL}, point(recipe=None, calibration=None, evaluation=None)
    return record("advise", numbers | changes, subject=subject, coordinates=coordinates)


def timed(batch, prompt, prefill_seconds, decode_seconds, spread=0.07):
    def step(name, seconds, tokens):
        return {
            f"{name}_seconds": seconds, f"{name}_spread": [seconds * (1 - spread), seconds * (1 + 2 * spread)],
            f"{name}_tokens_per_second": tokens / seconds,
        }  # fmt: skip

    return {"batch": batch, "prompt": prompt, **step("prefill", prefill_seconds, batch * prompt),
            **step("decode", decode_seconds, batch)}  # fmt: skip


def bench(label="smollm2-int4", **changes):
    rows = []
    for batch in (1, 4, 8):
        packed, plain = timed(batch, 256, 0.29 * batch, 0.011 + 0.002 * batch), timed(batch, 256, 0.26 * batch, 0.021)
        ratio = {step: plain[f"{step}_seconds"] / packed[f"{step}_seconds"] for step in ("prefill", "decode")}
        rows.append({"packed": packed, "dequantized": plain, "ratio": ratio})
    dense = {f"model.layers.{n}.mlp.down_proj": f"model.layers.{n}.mlp.down_proj has codes in an order of its own"
             for n in (1, 28)}  # fmt: skip
    numbers = {
        "rows": rows, "dequantized_bytes": 269_000_000, "weight_bytes": 113_000_000,
        "kernels": {"ours int4": 178, "dequantize": 30}, "dense": dense,
    }  # fmt: skip
    coordinates = point(recipe=None, calibration=None, evaluation=None)
    return record("bench", numbers | changes, subject={"model": label}, coordinates=coordinates)


def hostile():
    """Names of schemes, kernels, linears and a device that try to break out."""
    told = advise(advice=[BREAKOUT], goal=HOSTILE)
    told.numbers["machine"]["device"] = BREAKOUT
    for one in told.numbers["rows"]:
        one["name"] = one["name"] if one["name"] == "bf16" else f"%{{x}} {one['name']} {HOSTILE}"
        one["measured"]["kernels"] = {HOSTILE: BREAKOUT, "prompt": HOSTILE}
        one["foretold"]["prefill"]["bound"] = HOSTILE
    return [told, bench(HOSTILE, kernels={BREAKOUT: 3}, dense={HOSTILE: BREAKOUT})]
