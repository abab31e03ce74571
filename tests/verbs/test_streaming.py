"""A model that does not fit: however many blocks it has, few are in memory at once, and the numbers stay the same."""

import gc
import weakref
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


class Alive:
    """The most blocks that lived at once; those that only wait for the collector do not count."""

    def __init__(self) -> None:
        self.most, self._living = 0, weakref.WeakSet[Block]()

    def begin(self) -> None:
        """Counts anew."""
        self.most, self._living = 0, weakref.WeakSet()

    def add(self, block: Block) -> None:
        self._living.add(block)
        if len(self._living) > self.most:
            gc.collect()
            self.most = max(self.most, len(self._living))


@pytest.fixture
def alive(monkeypatch) -> Alive:
    counted, before = Alive(), Block.__init__

    def made(self, *args, **options) -> None:
        before(self, *args, **options)
        counted.add(self)

    monkeypatch.setattr(Block, "__init__", made)
    return counted


def test_diagnose_holds_few_blocks_and_tests_the_same(house, deep, tmp_path, alive):
    made = subeight.quantize(str(deep), str(house.rtn), options=house.options(out=tmp_path / "q", max_memory=1))
    assert alive.most <= 2
    evals = str(small.write_rows(tmp_path / "evals.jsonl", small.text_rows(6)))
    out = house.options(out=tmp_path / "e", evals=(evals,), max_memory=1, scratch=tmp_path / "s")
    subeight.evaluate(str(made.directory), str(deep), options=out)
    assert alive.most <= 2
    found = {}
    for name, given in (("whole", {}), ("streamed", {"max_memory": 1, "scratch": tmp_path / "s"})):
        alive.begin()
        complaint = subeight.Complaint(prompts=evals, only=("layers",))
        said = house.options(out=tmp_path / name, **given)
        found[name] = subeight.diagnose(str(made.directory), str(deep), complaint=complaint, options=said).numbers
        # two models, a block of each at hand and the pair before them
        assert (alive.most >= 2 * BLOCKS) if name == "whole" else (alive.most <= 4)
    tests = {name: numbers["findings"][-1]["details"]["tests"] for name, numbers in found.items()}
    assert tests["whole"] == tests["streamed"] != []
    assert not list((tmp_path / "s").iterdir()), "the states are gone"


def test_map_holds_few_blocks_and_measures_the_same(house, deep, tmp_path, alive):
    text = small.write_text(tmp_path / "text.txt", words=120)
    found = {}
    for name, given in (("whole", {}), ("streamed", {"max_memory": 1, "scratch": tmp_path / "s"})):
        alive.begin()
        options = house.options(out=tmp_path / name, evals=(str(text),), eval_window=24, **given)
        found[name] = mapped(str(deep), FORMATS, share=0.3, rescue=(), options=options).numbers
        # at hand, the one before it, and every format's; of each model that is measured
        assert (alive.most >= BLOCKS) if name == "whole" else (alive.most <= 3 + 2 * len(FORMATS))
    for part in ("cells", "whole", "mixtures", "controls"):
        assert found["whole"][part] == found["streamed"][part]
