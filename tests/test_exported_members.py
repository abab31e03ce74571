"""What a package says that it offers is there, whole and sorted; a verb has one name everywhere."""

import importlib
import inspect
import pkgutil
from pathlib import Path
from types import ModuleType

import pytest

import subeight
from subeight.cli.training import train
from subeight.cli.verbs import COMMANDS

DOCS = Path(__file__).resolve().parents[1] / "docs"
VERBS = (
    "advise",
    "allocate",
    "bench",
    "compare",
    "diagnose",
    "evaluate",
    "export",
    "generate",
    "inspect",
    "kv",
    "lock",
    "map",
    "quantize",
    "report",
    "verify",
)


def _packages() -> list[str]:
    found = pkgutil.walk_packages(subeight.__path__, "subeight.")
    return ["subeight", *(module.name for module in found if module.ispkg)]


def _order(name: str) -> tuple[int, str]:
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


def _offered(module: ModuleType) -> set[str]:
    """Public names of a package: all of them where it only hands on, its own where it has code."""
    public = {name for name in vars(module) if not name.startswith("_")}
    found = {name for name in public if not inspect.ismodule(getattr(module, name))}
    own = {name for name in found if getattr(getattr(module, name), "__module__", None) == module.__name__}
    return own or found


@pytest.mark.parametrize("name", _packages())
def test_all_is_complete_and_sorted(name):
    module = importlib.import_module(name)
    listed = getattr(module, "__all__", None)
    if listed is None:
        assert _offered(module) == set(), "a package that imports names says which of them it offers"
        return
    assert sorted(listed, key=_order) == listed
    assert len(set(listed)) == len(listed)
    assert all(hasattr(module, entry) for entry in listed)
    assert _offered(module) <= set(listed)


def test_a_verb_has_one_name_everywhere():
    files = {path.stem for path in (Path(subeight.__path__[0]) / "verbs").glob("*.py")}
    assert tuple(sorted(COMMANDS)) == VERBS
    for verb in VERBS:
        assert verb in files
        assert callable(getattr(subeight, verb)) and verb in subeight.__all__
        assert (DOCS / f"{verb}.md").is_file(), f"docs/{verb}.md is missing"


def test_what_trains_has_one_name_everywhere():
    named = sorted(f"train_{command.name}" for command in train.registered_commands)
    assert named == sorted(name for name in subeight.__all__ if name.startswith("train_"))
    for name in named:
        assert (Path(subeight.__path__[0]) / "verbs" / f"{name}.py").is_file() and (DOCS / "train.md").is_file()


def test_every_public_name_says_what_it_is():
    silent = [name for name in subeight.__all__ if not (getattr(subeight, name).__doc__ or "").strip()]
    plain = {"InputError", "ParityError", "SubeightError", "UndecidedError"}  # drawn in the docstring of errors.py
    assert set(silent) <= plain
