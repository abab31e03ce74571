from typing import Any

import pytest
import torch

from subeight.advise.advice import advice
from subeight.advise.machine import Machine, this_machine
from subeight.advise.schemes import SCHEMES, Scheme, Sizes, decode, prefill
from subeight.formats import Format
from subeight.kv.memory import Shape
from subeight.kv.policy import KVPolicy

MACHINE = Machine("cpu", 2, bandwidth=10e9, bf16=1e12, int8=2e12, call=0.0)
SIZES = Sizes(((1000, 1000),) * 10, (1000, 1000), Shape(2, 64, (None,) * 5), 4)
BF16 = Scheme("bf16")


def row(name: str, prompt: float, one: float, eight: float, size: int = 10) -> dict[str, Any]:
    steps = {"1": {"seconds": 1.0, "bound": "memory"}, "8": {"seconds": 1.0, "bound": "products"}}
    return {
        "name": name,
        "weight_bytes": size,
        "cache_bytes": {"1": 1, "8": 8},
        "foretold": {"prefill": {"seconds": 1.0, "bound": "products"}, "decode": steps},
        "measured": {
            "prefill_seconds": prompt,
            "decode_seconds": {"1": one, "8": eight},
            "kernels": {"few rows": "look-up", "prompt": "dequantize"},
        },
    }


ROWS = [row("bf16", 1.0, 1.0, 1.0, 40), row("W4A16", 1.0, 0.4, 0.99, 10), row("W8A8", 0.5, 0.98, 0.7, 20)]


@pytest.mark.parametrize(
    "goal, words",
    [
        ("latency", "Take W4A16: a token at batch 1 is 2.50 x faster than bf16 (by look-up)."),
        ("throughput", "Take W8A8"),
        ("memory", "Take W4A16: weights and cache of 8 sequences of 100 tokens is 2.67 x fewer bytes"),
    ],
)
def test_the_goal_decides(goal, words):
    said = advice(ROWS, goal, (1, 8), 100)
    assert said[0].startswith(words)
    assert "Not worth it for decode at batch 1: W8A8." in said
    assert "Not worth it for prefill: W4A16." in said


def test_few_bits_are_not_taken_for_speed_alone():
    said = advice([*ROWS, row("W2A16", 1.0, 0.25, 0.9)], "latency", (1, 8), 100)
    assert said[0].startswith("Take W2A16") and "of the others W4A16 gains most, 2.50 x" in said[1]
    assert not any("speed and bytes alone" in words for words in advice(ROWS, "latency", (1, 8), 100))


def test_nothing_pays():
    assert advice([ROWS[0], row("W4A16", 1.0, 0.97, 1.0)], "latency", (1, 8), 100)[0].startswith("Stay with bf16")


def test_the_roofline_by_hand():
    weights = 10 * 1000 * 1000
    one = decode(MACHINE, SIZES, BF16, 0, 1)
    assert one.bound == "memory" and one.seconds == pytest.approx(2 * (weights + 10**6) / 10e9)
    four = decode(MACHINE, SIZES, Scheme("W4", Format.parse("int4:g50")), 0, 1)
    assert four.seconds == pytest.approx((weights * (4 + 16 / 50) / 8 + 2 * 10**6) / 10e9, rel=1e-3)
    attention = 4 * (4000 * 4000 // 2) * 4 * 64 * 5
    many = prefill(MACHINE, SIZES, BF16, 4000)
    assert many.bound == "products"
    assert many.seconds == pytest.approx((2 * 4000 * weights + 2 * 10**6 + attention) / 1e12)
    eight = prefill(MACHINE, SIZES, Scheme("W8A8", Format.parse("int8:channel"), Format.parse("int8:token")), 4000)
    assert eight.seconds == pytest.approx((4000 * weights + 2 * 10**6 + attention) / 1e12)
    cache = decode(MACHINE, SIZES, Scheme("KV", kv=KVPolicy.parse("int4:g64,window=0,sinks=0,axis=token")), 10**6, 8)
    assert cache.seconds < 0.4 * decode(MACHINE, SIZES, BF16, 10**6, 8).seconds


def test_the_machine_is_measured_once(tmp_path):
    found = this_machine(torch.device("cpu"), tmp_path)
    assert min(found.bandwidth, found.bf16, found.call) > 0 and (found.int8 is None or found.int8 > 1e9)
    assert this_machine(torch.device("cpu"), tmp_path) == found
    assert len({scheme.name for scheme in SCHEMES}) == len(SCHEMES)
