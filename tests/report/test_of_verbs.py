"""Chapters on what the verbs really write, for a tiny model: nothing of a record is called otherwise than drawn."""

import re
from importlib import import_module

import pytest

from subeight import Options, advise, bench, kv, quantize
from subeight.advise.machine import Machine
from subeight.advise.schemes import Sizes
from subeight.models.model import Model
from subeight.report import caches, kv_figures, speed, speed_figures
from subeight.verbs import parity
from tests.verbs import small
from tests.verbs.conftest import unchecked

from .test_page import sections
from .test_speed import counted

MACHINE = Machine("cpu", 1, bandwidth=1e9, bf16=1e10, int8=3e10, call=1e-6)
POLICY = "int2:g16,window=8,sinks=2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model, its texts and a quantized checkpoint of it; caches and the machine are the test's own."""
    where = tmp_path_factory.mktemp("tiny")
    small.write_rows(where / "evals.jsonl", small.text_rows(40))
    base, recipe = small.save_llama(where / "base"), small.write_recipe(where / "small-rtn.yaml", small.RTN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("subeight.verbs.options.cache_directory", lambda: where / "cache")
        patch.setattr(parity, "check", unchecked)
        patch.setattr(import_module("subeight.verbs.advise"), "this_machine", lambda *_: MACHINE)
        quantize(str(base), str(recipe), options=options(where, "low"))
        yield where


def options(where, out, dtype="float32"):
    evals = (str(where / "evals.jsonl"),)
    return Options(threads=1, quiet=True, dtype=dtype, evals=evals, out=where / out)


def test_kv_with_a_map_an_allocation_and_a_budget(folder):
    found = kv(
        str(folder / "base"), policies=[POLICY], weights=[str(folder / "low")], contexts=(32, 64), windows=2,
        retrieval=0, written=4, batch=3, formats=["int8:g16", "int2:g16"], budget="1 MB", options=options(folder, "kv"),
    )  # fmt: skip
    read = caches.caches(found.record)
    assert len(read.cells) == len(found.numbers["cells"]) and read.contexts == [32, 64]
    assert all(cell.kl.value is not None and cell.parts and cell.cache for cell in read.cells)
    assert {row.policy for row in read.held} == {cell.policy for cell in read.cells}
    assert all(list(row.bytes) == [32, 64] and row.bits for row in read.held)
    assert len(read.alone) == 2 * 2 * 2 and read.mapped_at == 32 and read.serving
    assert read.granted and all(set(one.sides["keys"]) == {0, 1} and one.expected is not None for one in read.granted)
    assert all(read.cell("full", one.name, 32) for one in read.granted)
    assert read.joint.best is not None and read.joint.memory == 1e6 and len(read.findings) >= 1
    assert any(kv_figures.crossings(read, row) for row in read.held)
    titles = sections(found.report.read_text(encoding="utf-8"))
    assert titles[:6] == [
        "Keys and values in few bits", "Loss by place in the context", "Memory against context",
        "Which layers need the bits", "What the budget bought", "Weights and cache in one budget",
    ]  # fmt: skip


def test_advise_and_its_operations(folder):
    found = advise(str(folder / "base"), batch=(1, 2), context=48, options=options(folder, "advise", "bfloat16"))
    read, sizes = speed.advice(found.record), Sizes.of(Model(folder / "base"))
    assert len(speed_figures.drawn(read)) == 3 * len(found.numbers["rows"])
    for step in read.base.steps:
        assert step.operations == counted(sizes, step.batch, 48)
        assert step.measured and step.foretold and step.bytes and step.bound
    assert all(scheme.kernels for scheme in read.schemes) and read.sentences
    assert "Schemes" in sections(found.report.read_text(encoding="utf-8"))


def test_bench(folder):
    found = bench(str(folder / "low"), batch=(1, 2), prompt=8, tokens=3, rounds=2, options=options(folder, "bench"))
    rows = speed.benches(found.record)
    assert [row.batch for row in rows] == [1, 2]
    for timing in (timing for row in rows for timing in row.timings.values()):
        assert timing.rate.low <= timing.rate.value <= timing.rate.high and timing.seconds
    page = found.report.read_text(encoding="utf-8")
    assert sections(page)[:2] == ["Tokens per second", "What runs"] and re.search(r"\d+ linears", page)
