"""The allocation against every combination, and what fits into bytes against counting."""

from itertools import product

import pytest
import torch

from subeight.errors import InputError
from subeight.formats import Format
from subeight.kv.memory import Shape, cache_bytes
from subeight.kv.policy import KVPolicy
from subeight.map.budget import parse_budget
from subeight.verbs.kv_budget import allocated, joint, joint_sentence, least_bytes, require_enough

SHAPE = Shape(heads=2, head_dim=64, sliding=(None, 100))
POLICY = KVPolicy.parse("int4:g64,window=16,sinks=2")
FORMATS = ("int8:g64:sym", "int4:g64:sym", "int2:g64:sym")
LENGTH, BATCH = 1000, 3


def drawn() -> list[dict]:
    draw = torch.Generator().manual_seed(1)
    rows = []
    for layer, side in product(range(2), ("keys", "values")):
        losses = torch.rand(3, generator=draw, dtype=torch.float64).sort().values.tolist()
        rows += [{"layer": layer, "side": side, "format": f, "kl": kl} for f, kl in zip(FORMATS, losses, strict=True)]
    return rows


def everything(rows: list[dict]) -> list[tuple[float, float, float]]:
    """Bits, bytes and summed loss of every combination."""
    found = []
    for picks in product((*FORMATS, None), repeat=4):
        sides = list(product(range(2), ("keys", "values")))
        parts = [f"{layer}.{side}={f or 'none'}" for (layer, side), f in zip(sides, picks, strict=True)]
        policy = KVPolicy.parse(",".join(["none,window=16,sinks=2", *parts]))
        loss = sum(
            row["kl"] for row in rows for side, f in zip(sides, picks, strict=True)
            if (row["layer"], row["side"], row["format"]) == (*side, f)
        )  # fmt: skip
        bits = sum(sum(policy.bits(64, layer)) for layer in range(2)) / 4
        found.append((bits, cache_bytes(SHAPE, policy, LENGTH, BATCH), loss))
    return found


@pytest.mark.parametrize("asked", ["3 bits", "5.5 bits", "9 bits", "450 kB", "700 kB", "1.2 MB"])
def test_least_loss_within_a_budget(asked):
    rows, budget = drawn(), parse_budget(asked)
    policy, told = allocated(POLICY, rows, SHAPE, budget, LENGTH, BATCH)
    within = [
        loss for bits, size, loss in everything(rows) if (bits if budget.kind == "bits" else size) <= budget.value
    ]
    assert told["expected_kl"] == pytest.approx(min(within))
    assert (told["bits"] if budget.kind == "bits" else told["bytes"]) <= budget.value
    assert KVPolicy.parse(told["policy"]) == policy and policy.window == 16


def test_least_bytes_for_a_loss():
    rows = drawn()
    _, told = allocated(POLICY, rows, SHAPE, parse_budget("kl 0.8"), LENGTH, BATCH)
    least = min(size for _, size, loss in everything(rows) if loss <= 0.8)
    assert told["expected_kl"] <= 0.8
    assert told["bytes"] == pytest.approx(least, abs=BATCH)  # bytes of one sequence are rounded


def test_too_small_a_budget():
    formats = [Format.parse(text) for text in FORMATS]
    with pytest.raises(InputError, match=r"2\.25 bits at least"):
        require_enough(POLICY, formats, SHAPE, parse_budget("2 bits"), 0, LENGTH, BATCH)
    least = min(size for _, size, _ in everything(drawn()))
    assert least_bytes(POLICY, formats, SHAPE, LENGTH, BATCH) == pytest.approx(least, abs=BATCH)
    with pytest.raises(InputError, match="weights and cache take"):
        require_enough(POLICY, formats, SHAPE, parse_budget(f"{least + 900} B"), 1000, LENGTH, BATCH)
    for enough in ("2.25 bits", f"{least + 1100} B", "kl 0.001"):
        require_enough(POLICY, formats, SHAPE, parse_budget(enough), 1000, LENGTH, BATCH)


def test_what_fits():
    cells = [
        {"context": 64, "weights": "full", "policy": "none", "kl": 0.0},
        {"context": 512, "weights": "full", "policy": "none", "kl": 0.0},
        {"context": 512, "weights": "low", "policy": "none", "kl": 0.2},
        {"context": 512, "weights": "low", "policy": "int4", "kl": 0.3},
    ]
    policies, held = {"none": KVPolicy(), "int4": POLICY}, {"full": 10**6, "low": 3 * 10**5}
    full = cache_bytes(SHAPE, KVPolicy(), LENGTH, BATCH)
    found = joint(cells, policies, held, SHAPE, full + 3 * 10**5, LENGTH, BATCH)
    assert [row["fits"] for row in found["rows"]] == [False, True, True]
    assert found["best"] == 1 and found["measured_at"] == 512
    assert found["rows"][1]["longest"] == LENGTH and found["rows"][0]["longest"] < LENGTH < found["rows"][2]["longest"]
    assert "low weights with none lose least: KL 0.2000" in joint_sentence(found)
    tight = joint(cells, policies, held, SHAPE, 10**5, LENGTH, BATCH)
    assert tight["best"] is None and {row["longest"] for row in tight["rows"]} == {0}
    assert "Nothing that was measured fits 100" in joint_sentence(tight)
