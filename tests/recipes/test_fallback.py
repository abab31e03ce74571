import pytest

from subeight.errors import RecipeError
from subeight.recipes import parse_recipe, resolve
from subeight.recipes.fallback import UNREACHED, with_fallback
from tests.recipes.conftest import mixture

DRY = "model.layers.0.mlp.experts.2"


def plan_of(text):
    return resolve(parse_recipe(text), mixture())


def changed(before, after):
    pairs = zip(before.sites, after.sites, strict=True)
    return [
        new for old, new in pairs if (old.methods, old.weights, old.reason) != (new.methods, new.weights, new.reason)
    ]


def test_only_the_unreached_expert_is_rounded_plainly_and_the_plan_says_why():
    before = plan_of("{weights: 'int4:g32', methods: [awq, gptq]}")
    after = with_fallback(before, {DRY})
    found = changed(before, after)
    assert {site.linear.expert for site in found} == {DRY} and len(found) >= 1
    for site in found:
        assert [name for name, _ in site.methods] == ["awq", "rtn"], "moves act on all readers of one norm"
        assert site.methods[1][1] == {"search": "mse"} and UNREACHED in site.reason
        assert str(site.weights) == "int4:g32:sym" and site.runs_in == before.site(site.linear.name).runs_in
    assert after.fingerprint != before.fingerprint


def test_what_looks_at_its_inputs_goes_and_what_tunes_the_whole_stays():
    before = plan_of("{weights: 'int4:g32', methods: [outliers, gptq, lowrank, distil]}")
    site = changed(before, with_fallback(before, {DRY}))[0]
    assert [name for name, _ in site.methods] == ["rtn", "distil"]


def test_a_wider_format_costs_the_engines_that_fuse_experts():
    before = plan_of("weights: int4:g32")
    after = with_fallback(before, {DRY}, "int8:channel")
    found = changed(before, after)
    assert {str(site.weights) for site in found} == {"int8:channel:sym"}
    assert all("in int8:channel:sym in place of int4:g32:sym" in site.reason for site in found)
    assert "vllm" in before.site(f"{DRY}.up_proj").runs_in and "vllm" not in after.site(f"{DRY}.up_proj").runs_in
    with pytest.raises(RecipeError, match="vllm"):
        with_fallback(before, {DRY}, "int8:channel", "vllm")


def test_a_narrower_format_is_no_fallback():
    before = plan_of("weights: int8:channel")
    assert {str(site.weights) for site in with_fallback(before, {DRY}, "int4:g32").quantized} == {"int8:channel:sym"}


def test_a_plan_whose_experts_are_all_reached_stays_itself():
    before = plan_of("weights: int4:g32")
    assert with_fallback(before, set()) is before


def test_an_expert_that_is_kept_stays_kept():
    before = plan_of(f"{{weights: 'int4:g32', rules: [{{match: '{DRY}.*', keep: true}}]}}")
    assert with_fallback(before, {DRY}) is before
