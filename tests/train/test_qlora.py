"""Training: a killed run goes on from its last whole checkpoint and ends as an uninterrupted one does."""

import json
import math
import shutil

import pytest
import torch

from subeight.errors import InputError
from subeight.models.model import Model
from subeight.text import Sample
from subeight.train.adapters import WEIGHTS, LoraShape, add_adapters, chosen_targets, save_adapter
from subeight.train.manifest import manifest
from subeight.train.qlora import Course, last_checkpoint, train
from subeight.train.qlora_base import load_base
from subeight.train.qlora_fit import require_memory
from tests.engine.tiny import quantize
from tests.models.families import FAMILIES, build, save

ORIGIN = {"base": "one", "made_of": None}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qlora")
    plain = save(build(FAMILIES["mixtral"].config), folder / "plain")
    quantize(plain, "{weights: 'nf4:g32', methods: [rtn]}", folder / "base", None, to="subeight")
    return Model(folder / "base")


def samples(count: int = 12) -> list[Sample]:
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 128, (count, 9), generator=draw).tolist()
    return [Sample(tuple(row), (False,) * 6 + (True,) * 3, "c", str(n)) for n, row in enumerate(ids)]


def wrapped(model):
    loaded = load_base(model, torch.float32)
    return loaded, add_adapters(loaded, chosen_targets(model, ["all"]), LoraShape(2, 8.0), "plain", 0)


def learn(model, directory, course, adapted=None):
    adapted = adapted or wrapped(model)[1]
    options = {"dtype": torch.float32, "device": torch.device("cpu"), "seed": 0, "quiet": True}
    found = train(adapted, samples(), course, directory, ORIGIN, **options)
    save_adapter(adapted, directory / "end", ORIGIN)
    return found, (directory / "end" / WEIGHTS).read_bytes()


def test_a_resumed_training_ends_with_the_same_bytes(base, tmp_path):
    course = Course(steps=6, batch=4, rate=1e-2, save=2)
    whole, expected = learn(base, tmp_path / "whole", course)
    assert whole.curve[-1]["loss"] < whole.curve[0]["loss"] and whole.resumed == 0
    (tmp_path / "cut").mkdir()
    kept = tmp_path / "cut" / "checkpoint-4"
    shutil.copytree(tmp_path / "whole" / "checkpoint-4", kept)
    torn = tmp_path / "cut" / "checkpoint-6"  # a kill in the middle of writing it
    torn.mkdir()
    (torn / "optimizer.pt").write_bytes(b"half")
    assert last_checkpoint(tmp_path / "cut") == kept and not torn.exists()
    again, found = learn(base, tmp_path / "cut", course)
    assert again.resumed == 4 and again.steps == 6
    assert found == expected


def test_a_loss_that_is_no_number_ends_it_with_a_sentence(base, tmp_path):
    adapted = wrapped(base)[1]
    for name, value in adapted.named_parameters():
        if "lora_B" in name:
            value.data.fill_(math.nan)
    with pytest.raises(InputError, match="smaller --rate"):
        learn(base, tmp_path, Course(steps=2, batch=4), adapted)


def test_the_manifest_has_every_parameter_fused_experts_too(base):
    loaded, adapted = wrapped(base)
    found = manifest(loaded, base, {"model.layers.0.block_sparse_moe.gate": "routers are kept"}, adapted)
    by_name = {entry.name: entry for entry in found.entries}
    held = {name for name, _ in base.skeleton.model.named_parameters()}
    assert held <= by_name.keys()
    totals = found.totals()
    assert totals["fused"] == {"parameters": 4, "quantized": 4, "bytes": totals["fused"]["bytes"]}
    fused = [entry for entry in found.entries if len(entry.shape) == 3]
    assert all(8 * entry.bytes / entry.count == 4.5 for entry in fused)
    frozen = [entry for entry in found.of("frozen") if len(entry.shape) > 1]
    assert frozen and all(entry.format == "float32" and entry.reason for entry in frozen)
    trained = sum(value.numel() for value in adapted.parameters() if value.requires_grad)
    assert totals["trained"] == {"parameters": len(found.of("trained")), "count": trained, "bytes": 4 * trained}
    assert totals["quantized"]["bytes"] + totals["frozen"]["bytes"] == loaded.nbytes
    assert json.loads(json.dumps(found.numbers())) and len(found.summary()) < len(found.entries)


def test_a_batch_that_does_not_fit_is_refused_with_one_that_does(base):
    given = {"held": 10**6, "trained": 1000, "length": 64, "columns": 8, "item": 4}
    needed = require_memory(base, rows=8, limit=1 << 40, **given)
    assert needed > require_memory(base, rows=4, limit=1 << 40, **given)
    with pytest.raises(InputError, match=r"give --batch 7, and --accumulate"):
        require_memory(base, rows=8, limit=needed - 1, **given)
    with pytest.raises(InputError, match="smaller --length or --rank"):
        require_memory(base, rows=8, limit=10**6, **given)


@pytest.mark.parametrize("wrong", [{"steps": -1}, {"epochs": 0.0}, {"batch": 0}, {"rate": 0.0}])
def test_courses_that_cannot_be_are_refused(wrong):
    with pytest.raises(InputError):
        Course(**wrong)
