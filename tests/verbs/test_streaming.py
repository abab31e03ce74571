"""A model that does not fit: however many blocks it has, few are in memory at once, and the numbers stay the same."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import subeight
from subeight.models.block import Block
from subeight.verbs.map import map as mapped
from tests.verbs import small

pytestmark = pytest.mark.usefixtures("no_check")
BLOCKS = 6
FORMATS = ("int4:g32", "int2:g32")


@pytest.fixture(scope="module")
def deep(tmp_path_factory) -> Path:
    return small.save_llama(tmp_path_factory.mktemp("deep") / "deep", num_hidden_layers=BLOCKS)


@pytest.fixture
def alive(monkeypatch) -> Iterator[list[int]]:
    """Blocks that live now, and the most that did."""
    counted = [0, 0]
    before = Block.__init__

    def made(self, *args, **options) -> None:
        before(self, *args, **options)
        counted[0] += 1
        counted[1] = max(counted)

    def gone(self) -> None:
        counted[0] -= 1

    monkeypatch.setattr(Block, "__init__", made)
    monkeypatch.setattr(Block, "__del__", gone, raising=False)
    yield counted


def test_diagnose_holds_few_blocks_and_tests_the_same(house, deep, tmp_path, alive):
    made = subeight.quantize(str(deep), str(house.rtn), options=house.options(out=tmp_path / "q", max_memory=1))
    assert alive[1] <= 2
    evals = str(small.write_rows(tmp_path / "evals.jsonl", small.text_rows(6)))
    out = house.options(out=tmp_path / "e", evals=(evals,), max_memory=1, scratch=tmp_path / "s")
    subeight.evaluate(str(made.directory), str(deep), options=out)
    assert alive[1] <= 2
    found = {}
    for name, given in (("whole", {}), ("streamed", {"max_memory": 1, "scratch": tmp_path / "s"})):
        alive[:] = [0, 0]
        complaint = subeight.Complaint(prompts=evals, only=("layers",))
        said = house.options(out=tmp_path / name, **given)
        found[name] = subeight.diagnose(str(made.directory), str(deep), complaint=complaint, options=said).numbers
        # two models, a block of each at hand and the pair before them
        assert (alive[1] >= 2 * BLOCKS) if name == "whole" else (alive[1] <= 4)
    tests = {name: numbers["findings"][-1]["details"]["tests"] for name, numbers in found.items()}
    assert tests["whole"] == tests["streamed"] != []
    assert not list((tmp_path / "s").iterdir()), "the states are gone"


def test_map_holds_few_blocks_and_measures_the_same(house, deep, tmp_path, alive):
    text = small.write_text(tmp_path / "text.txt", words=120)
    found = {}
    for name, given in (("whole", {}), ("streamed", {"max_memory": 1, "scratch": tmp_path / "s"})):
        alive[:] = [0, 0]
        options = house.options(out=tmp_path / name, evals=(str(text),), eval_window=24, **given)
        found[name] = mapped(str(deep), FORMATS, share=0.3, rescue=(), options=options).numbers
        # at hand, the one before it, and every format's; of each model that is measured
        assert (alive[1] >= BLOCKS) if name == "whole" else (alive[1] <= 3 + 2 * len(FORMATS))
    for part in ("cells", "whole", "mixtures", "controls"):
        assert found["whole"][part] == found["streamed"][part]
