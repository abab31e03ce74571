"""A recipe as text: strict, told in one sentence where it is wrong, and the same after being written out again."""

from pathlib import Path

import pytest
import yaml

from subeight.errors import RecipeError
from subeight.formats import Format
from subeight.recipes import Recipe, load_recipe, parse_recipe, shipped_recipes

SHIPPED = (
    [f"rtn-int{bits}" for bits in range(2, 9)]
    + [f"gptq-int{bits}" for bits in (2, 3, 4)]
    + [f"{way}-int{bits}" for way in ("awq", "hqq", "fast") for bits in (3, 4)]
    + [f"{way}-gptq-int{bits}" for way in ("awq", "smooth", "rotate", "outliers") for bits in (3, 4)]
    + [f"best-int{bits}" for bits in (2, 3, 4)]
    + ["gguf-q4", "gguf-q8", "nf4", "fp8", "w8a8", "w8a8-static", "w8a8-rotated", "w4a8", "w4a4"]
)


def test_shipped_names() -> None:
    assert shipped_recipes() == sorted(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_loads_and_is_named_like_its_file(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.weights is not None and Format.parse(recipe.weights).code_bits <= 8


def test_formats_are_written_in_their_canonical_form() -> None:
    recipe = parse_recipe("weights: int4\ninputs: INT8:token")
    assert (recipe.weights, recipe.inputs) == ("int4:g64:sym", "int8:token:sym")


def test_methods_take_options() -> None:
    recipe = parse_recipe("weights: int4\nmethods: [awq, {gptq: {damping: 0.02}}]")
    assert [(use.name, use.options) for use in recipe.methods] == [("awq", {}), ("gptq", {"damping": 0.02})]


def test_what_to_dict_says_is_the_same_recipe_again() -> None:
    recipe = parse_recipe(
        "name: mixed\nweights: int4:g64\nmethods: [awq, {gptq: {damping: 0.02}}]\ntap: exact\n"
        "rules:\n  - {match: '*.down_proj', weights: int8, inputs: null}\n  - {match: lm_head, keep: true}\n"
        "  - {match: '*.up_proj', methods: [{rtn: {search: mse}}]}\n"
    )
    again = parse_recipe(yaml.safe_dump(recipe.to_dict()))
    assert again == recipe
    assert again.rules[0].model_fields_set == {"match", "weights", "inputs"}


def test_the_fingerprint_leaves_out_name_and_calibration_only() -> None:
    base = parse_recipe("name: a\nweights: int4")
    assert parse_recipe("name: b\nweights: int4:g64:sym\ncalibration: {seed: 7}").fingerprint == base.fingerprint
    others = ["weights: int3", "weights: int4\ntap: exact", "weights: int4\nmethods: [gptq]"]
    assert len({base.fingerprint, *(parse_recipe(text).fingerprint for text in others)}) == 4
    assert len(base.fingerprint) == 16


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("wieghts: int4", "unknown key 'wieghts'.*allowed are name, weights.*Did you mean 'weights'"),
        ("weights: int4\ncalibration: {sequence: 3}", "in calibration.*'sequence'.*Did you mean 'sequences'"),
        ("weights: int4\nrules: [{macth: '*'}]", r"rules\[0\].*'macth'.*Did you mean 'match'"),
        ("weights: int44", "weights: .*int44.*int4"),
        ("weights: int4\nrules: [{match: '*', inputs: int9}]", r"rules\[0\].inputs.*int9"),
        ("weights: 4", "weights: .*string.*given: 4"),
        ("weights: int4\nkv: int44", "kv: KV policy .*int44"),
        ("weights: int4\nkv: int4:g64,windw=3", "kv: .*did you mean window"),
        ("weights: int4\nkv: 4", "kv: .*string.*given: 4"),
        ("weights: int4\ntap: sometimes", "tap: .*sequential.*given: 'sometimes'"),
        ("weights: int4\nmethods: [[gptq]]", r"methods\[0\].*is not a method"),
        ("weights: int4\nmethods: [{gptq: {}, awq: {}}]", r"methods\[0\].*is not a method"),
        ("weights: int4\ncalibration: {sequences: '3'}", "calibration.sequences.*given: '3'"),
        ("weights: int4\ncalibration: {length: 1}", "calibration.length.*greater than 1"),
        ("weights: int4\nrules: [{match: a, keep: true, weights: int4}]", "keep: true leaves the linear as it is"),
        ("weights: int4\nrules: [{match: a}]", "the rule changes nothing"),
        ("weights: int4\nrules: [{match: *.up}]", "line 2.*begins with . is written in quotes"),
        ("weights: int4\nweights: int3", "'weights' stands twice"),
        ("weights: int4\n1: 2", "key 1 is not text"),
        ("- weights", "holds list where a mapping is expected"),
        ("", "holds NoneType where a mapping is expected"),
        ("weights: [", "is not valid YAML"),
    ],
)
def test_a_bad_recipe_is_one_sentence(text: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says) as error:
        parse_recipe(text)
    assert "\n" not in str(error.value)
    assert error.value.exit_status == 2


def test_a_file_is_loaded_and_named_after_it(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("weights: int3:g32\n")
    assert load_recipe(path) == Recipe(name="mine", weights="int3:g32:sym")


@pytest.mark.parametrize(
    ("name", "says"),
    [("gptq-int5", "Did you mean 'gptq-int"), ("no/such.yaml", "no recipe file"), ("", "neither a shipped")],
)
def test_an_unknown_recipe_names_the_nearest(name: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        load_recipe(name)


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"weights: \xff")
    with pytest.raises(RecipeError, match="not UTF-8"):
        load_recipe(path)


def test_a_policy_of_keys_and_values_is_read_in_one_form() -> None:
    recipe = parse_recipe("weights: int4\nkv: 'int4:g64,window=128,rotate=true'")
    assert recipe.kv == "int4:g64:sym,rotate" and parse_recipe("weights: int4\nkv: none").kv is None
    assert parse_recipe(recipe.to_yaml()) == recipe
    assert recipe.fingerprint != parse_recipe("weights: int4").fingerprint
