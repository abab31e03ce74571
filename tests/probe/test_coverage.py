import json
from functools import partial

import pytest
import torch

from subeight.models.block import Block
from subeight.models.shell import Shell
from subeight.probe.coverage import _compare, coverage
from subeight.probe.reach import Reach
from subeight.probe.watching import run_watched
from subeight.text import Sample, batches
from tests.inspect.conftest import tokens
from tests.text.conftest import make_tokenizer

PLACE = "model.layers.0.mlp.down_proj"


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def samples(rows):
    return [Sample(tuple(row), (False, *(True for _ in row[1:])), "x", str(i)) for i, row in enumerate(rows)]


def compare(model, seen, reached, tokenizer, **options):
    return coverage(model, seen, samples(reached), tokenizer, dtype=torch.float32, quiet=True, **options)


def test_text_of_one_kind_warns_of_nothing(plant, tokenizer):
    found = compare(plant(), tokens(8, 64), tokens(4, 64, seed=1).tolist(), tokenizer)
    assert found["warnings"] == found["ranges"] == found["experts"] == []
    assert found["tokens"] == {"calibration": 512, "evaluation": 256}


def test_an_unseen_script_is_named(plant, tokenizer):
    seen = torch.tensor([tokenizer("the cat sat on the mat and the dog ran " * 12)["input_ids"][:64]] * 4)
    found = compare(plant(), seen, [tokenizer("кот и пёс бежали по дороге")["input_ids"]], tokenizer)
    assert any("letters are Cyrillic" in line for line in found["warnings"])
    assert found["text"]["scripts_reached"]["Cyrillic"] == 1.0


def _reaches(token, whole):
    """Makes `token`, and no other, reach channel 3 of the first MLP."""
    whole.model.embed_tokens.weight[:, 11] = 0
    whole.model.embed_tokens.weight[token, 11] = 1.0
    whole.model.layers[0].self_attn.o_proj.weight[11] = 0
    for module in (whole.model.layers[0].mlp.gate_proj, whole.model.layers[0].mlp.up_proj):
        module.weight[3] = 0
        module.weight[3, 11] = 10.0


def test_a_range_and_a_channel_that_only_the_evaluation_reaches_are_named(plant, tokenizer):
    reached = tokens(4, 40, seed=1)
    reached[:, ::4] = 7
    found = compare(plant(partial(_reaches, 7)), tokens(8, 64), reached.tolist(), tokenizer)
    top = next(row for row in found["ranges"] if row["group"] == PLACE)
    assert top["channel"] == 3 and top["tokens"] == 40 and top["factor"] > 5 and top["block"] == 0
    often = next(row for row in found["channels"] if row["group"] == PLACE)["channels"][0]
    assert often["channel"] == 3 and often["tokens"] == 40 and often["evaluation"] == top["evaluation"]
    ranges, channels = (next(s for s in found["warnings"] if s.startswith(w)) for w in ("Ranges", "Channels"))
    assert PLACE in ranges and f"channel 3 of {PLACE}" in channels
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_padding_is_not_seen(plant, tokenizer):
    """Token 0, which pads, is the only one that reaches channel 3 of the first MLP."""
    rows = [tokens(length, seed=length).tolist() for length in (17, 20, 31, 32)]
    model = plant(partial(_reaches, 0))
    found = compare(model, tokens(4, 32), rows, tokenizer)
    assert found["tokens"]["evaluation"] == 100
    assert PLACE not in {row["group"] for row in found["ranges"]}
    seen = compare(model, tokens(4, 32), [*rows, [50, 0, 51]], tokenizer)
    assert next(row for row in seen["ranges"] if row["group"] == PLACE)["tokens"] == 1


@pytest.mark.real
def test_padding_reaches_no_expert(mixture, tokenizer):
    lengths = (17, 20, 31, 32)
    packs = batches(samples([tokens(length).tolist() for length in lengths]), 4096)
    shell, block = Shell(mixture, torch.float32), Block(mixture, 0, torch.float32)
    assert [pack.ids.shape for pack in packs] == [(4, 32)]
    real = torch.arange(32)[None] < packs[0].lengths[:, None]
    seen = [(shell.embed(tokens(2, 16)), None)]
    beyond, _ = _compare(block, shell, seen, [(shell.embed(packs[0].ids), real)])
    first = [b for b in beyond if b.reach.group.is_expert and b.reach.group.source.endswith(".0")]
    assert len(first) == 8 and sum(b.count for b in first) == 2 * sum(lengths)


def test_reach_is_the_same_in_parts(plant):
    group = plant().structures[0].groups[0]
    rows = torch.randn(90, group.width, generator=torch.Generator().manual_seed(0))
    whole, parts = Reach(group, torch.device("cpu")), Reach(group, torch.device("cpu"))
    whole.add(rows)
    for part in rows.split(40):
        parts.add(part)
    assert whole.count == parts.count == 90 and torch.equal(whole.absmax, rows.abs().amax(0))
    assert torch.equal(whole.absmax, parts.absmax)
    assert whole.typical == pytest.approx(float(rows.square().mean(0).sqrt().median()), rel=1e-5)
    assert parts.typical == pytest.approx(whole.typical, rel=1e-6)


def test_the_right_choice_is_read_too(plant, tokenizer):
    sample = Sample((20, 21), (False, True), "x", "a", choices=((30,), (40, 41, 42)), answer=1)
    found = coverage(plant(), tokens(2, 16), [sample], tokenizer, dtype=torch.float32, quiet=True)
    assert found["tokens"]["evaluation"] == 5


@pytest.mark.real
def test_a_starved_expert_is_named(mixture):
    ids = tokens(1, 256, high=500)
    shell, block = Shell(mixture, torch.float32), Block(mixture, 0, torch.float32)
    counts = {}
    run_watched(
        block, shell.embed(ids), shell.call((1, 256), 0),
        lambda group, rows, cells: counts.update({group.name: len(rows)}) if group.is_expert else None,
    )  # fmt: skip
    found = compare(mixture, ids, tokens(3, 200, high=500, seed=1).tolist(), mixture.tokenizer())
    for row in (row for row in found["experts"] if row["block"] == 0):
        own = {count for name, count in counts.items() if name.startswith(f"{row['expert']}.")}
        assert own <= {row["calibration"]} and row["calibration"] < 128 and row["evaluation"] > 0
    assert found["experts"]
    assert any(line.startswith("Experts") and found["experts"][0]["expert"] in line for line in found["warnings"])
