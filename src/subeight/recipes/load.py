"""Recipes by name or by file: those that are shipped, and any YAML file."""

from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from subeight.errors import RecipeError
from subeight.recipes.recipe import Recipe, did_you_mean


class _UniqueLoader(yaml.SafeLoader):
    """YAML without the silent loss of a key that is written twice."""


def _mapping(loader: _UniqueLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is not text", key_node.start_mark)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", key_node.start_mark)
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_UniqueLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def shipped_recipes() -> list[str]:
    """The names that `--recipe` takes besides files."""
    folder = resources.files("subeight.recipes") / "shipped"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_recipe(name_or_path: str | Path) -> Recipe:
    """A shipped recipe by its name, or the recipe in a YAML file (named like the file if it says no name)."""
    text = str(name_or_path)
    known = shipped_recipes()
    if text in known:
        source = (resources.files("subeight.recipes") / "shipped" / f"{text}.yaml").read_text(encoding="utf-8")
        return parse_recipe(source, f"The shipped recipe {text}", text)
    path = Path(text)
    if path.is_file():
        try:
            source = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise RecipeError(f"The recipe file {path} is not UTF-8 text; save it as UTF-8.") from error
        return parse_recipe(source, f"The recipe {path}", path.stem)
    if path.suffix in (".yaml", ".yml") or path.parent != Path():
        raise RecipeError(f"There is no recipe file {path}; give an existing YAML file or one of: {', '.join(known)}.")
    raise RecipeError(
        f"{text!r} is neither a shipped recipe nor a file; shipped are {', '.join(known)}.{did_you_mean(text, known)}"
    )


def parse_recipe(source: str, where: str = "The recipe", name: str = "unnamed") -> Recipe:
    """The recipe that this YAML text says; `where` begins the message of an error."""
    try:
        content = yaml.load(source, Loader=_UniqueLoader)
    except yaml.YAMLError as error:
        raise RecipeError(f"{where} is not valid YAML: {_problem(error)}.") from error
    if isinstance(content, dict):
        content.setdefault("name", name)
    return Recipe.from_dict(content, where)


def _problem(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    text = str(getattr(error, "problem", None) or error)
    place = f"line {mark.line + 1}: " if mark is not None else ""
    hint = "; a pattern that begins with * is written in quotes" if "alias" in f"{text} {error}" else ""
    return f"{place}{text}{hint}"
