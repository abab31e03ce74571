"""One tiny model, its texts and its quantized checkpoints, made once; the caches of verbs stay in the tests' folder."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from subeight import Options, Result, quantize
from subeight.export import Parity
from subeight.verbs import parity
from tests.verbs import small


def unchecked(*_args, **_options) -> Parity:
    """In the place of the fresh process that loads a checkpoint, which costs seconds; the end-to-end test has it."""
    return Parity(max_abs=0.0, bound=1.0, tokens=0, compared=0)


@dataclass(frozen=True)
class House:
    """A directory with a model, its texts and recipes, and options that fit them."""

    folder: Path
    base: Path
    calibration: Path
    evals: Path
    gptq: Path
    rtn: Path

    def options(self, **changed) -> Options:
        given = {"threads": 1, "quiet": True, "dtype": "float32", "evals": (str(self.evals),)}
        return Options(**{**given, **changed})


@pytest.fixture(scope="package", autouse=True)
def caches(tmp_path_factory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("subeight.verbs.options.cache_directory", lambda: folder)
        yield folder


@pytest.fixture
def no_check(monkeypatch) -> None:
    monkeypatch.setattr(parity, "check", unchecked)


@pytest.fixture(scope="package")
def house(tmp_path_factory) -> House:
    folder = tmp_path_factory.mktemp("house")
    calibration = small.write_text(folder / "calibration.txt")
    return House(
        folder,
        small.save_llama(folder / "base"),
        calibration,
        small.write_rows(folder / "evals.jsonl", small.text_rows(40)),
        small.write_recipe(folder / "small-gptq.yaml", small.GPTQ, calibration),
        small.write_recipe(folder / "small-rtn.yaml", small.RTN),
    )


@pytest.fixture(scope="package")
def made(house) -> Callable[[str], Result]:
    """The quantized checkpoint of a recipe of the house (`gptq` or `rtn`), made once."""
    results: dict[str, Result] = {}

    def find(name: str) -> Result:
        if name not in results:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(parity, "check", unchecked)
                options = house.options(out=house.folder / f"made-{name}")
                results[name] = quantize(str(house.base), str(getattr(house, name)), options=options)
        return results[name]

    return find
