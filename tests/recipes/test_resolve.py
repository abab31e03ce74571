"""From recipe to plan: who gets what and why, and what is refused before a weight is read."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from subeight.errors import RecipeError
from subeight.formats import Format
from subeight.models.linear_info import LinearInfo
from subeight.recipes import Plan, load_recipe, parse_recipe, resolve, shipped_recipes
from tests.recipes.conftest import linear, llama, mixture

INT4 = Format.parse("int4")


def plan(text: str, linears: list[LinearInfo], **options: object) -> Plan:
    return resolve(parse_recipe(text), linears, **options)


def test_blocks_get_the_default_and_the_rest_is_kept_with_a_reason(linears: list[LinearInfo]) -> None:
    found = plan("weights: int4\nmethods: [awq, gptq]", linears)
    assert [site.linear.name for site in found.kept] == ["model.embed_tokens", "lm_head"]
    assert found.site("lm_head").reason == "kept in high precision: lm_head unless a rule names it"
    site = found.site("model.layers.1.mlp.down_proj")
    assert (site.weights, site.methods, site.reason) == (INT4, (("awq", {}), ("gptq", {})), "recipe default")


def test_the_last_matching_rule_wins_over_the_recipe_alone(linears: list[LinearInfo]) -> None:
    found = plan(
        "weights: int4\nmethods: [gptq]\nrules:\n"
        "  - {match: '*.down_proj', weights: int8:g32}\n  - {match: 'model.layers.0.*', methods: [rtn]}\n",
        linears,
    )
    first, second = found.site("model.layers.0.mlp.down_proj"), found.site("model.layers.1.mlp.down_proj")
    assert (first.weights, first.methods, first.reason) == (INT4, (("rtn", {}),), "rule 2: model.layers.0.*")
    assert (str(second.weights), second.methods) == ("int8:g32:sym", (("gptq", {}),))


def test_keep_and_null_leave_a_linear_as_it_is(linears: list[LinearInfo]) -> None:
    text = "weights: int4\nrules: [{match: '*.0.*.o_proj', keep: true}, {match: '*.1.*.o_proj', weights: null}]"
    found = plan(text, linears)
    for name, number in (("model.layers.0.self_attn.o_proj", 1), ("model.layers.1.self_attn.o_proj", 2)):
        site = found.site(name)
        assert (site.weights, site.inputs, site.methods, site.bits) == (None, None, (), 16.0)
        assert site.reason.startswith(f"rule {number}") and site.reason.endswith("(kept)")


def test_wildcards_do_not_name_what_stays_in_high_precision() -> None:
    rules = "[{match: '*', weights: int3}, {match: 'model.layers.0.*', weights: int2}]"
    covered = plan(f"weights: int4\nrules: {rules}", mixture())
    assert covered.site("model.layers.0.mlp.gate").weights is None
    assert str(covered.site("model.layers.0.mlp.experts.2.up_proj").weights) == "int2:g64:sym"
    named = plan("weights: int4\nrules: [{match: '*.gate', weights: int8}]", mixture())
    assert str(named.site("model.layers.1.mlp.gate").weights) == "int8:g64:sym"
    assert named.site("model.layers.1.self_attn.o_proj").reason == "recipe default"


def test_outside_the_blocks_only_plain_rounding_is_possible(linears: list[LinearInfo]) -> None:
    rules = "rules: [{match: lm_head, weights: int8:channel}, {match: '*.embed_tokens', weights: int8}]"
    found = plan(f"weights: int4\ninputs: int8:token\nmethods: [awq, gptq]\n{rules}", linears)
    head, embedding = found.site("lm_head"), found.site("model.embed_tokens")
    assert head.methods == embedding.methods == (("rtn", {}),)
    assert head.reason == "rule 1: lm_head; outside the blocks: rtn alone"
    assert str(head.inputs) == "int8:token:sym" and embedding.inputs is None


def test_moves_are_left_out_with_a_reason_where_nothing_absorbs_a_scale(linears: list[LinearInfo]) -> None:
    name = "model.layers.0.self_attn.o_proj"
    foldable = {item.group for item in linears} - {name}
    text = "weights: int4\nmethods: [awq, gptq]"
    found = plan(text, linears, foldable=foldable)
    assert found.site(name).methods == (("gptq", {}),)
    assert "awq left out: nothing before this input can absorb a scale" in found.site(name).reason
    assert found.site("model.layers.1.self_attn.o_proj").methods[0][0] == "awq"
    assert plan(text, linears, foldable=foldable.__contains__).fingerprint == found.fingerprint


def test_a_short_last_group_is_said_and_costs_its_bits() -> None:
    found = plan("weights: int4:g64", [linear("model.layers.0.mlp.down_proj", (64, 172))])
    site = found.sites[0]
    assert site.reason == "recipe default; last group short: 44 of 64 columns"
    assert site.runs_in == ("subeight",)
    assert site.bits == INT4.bits((64, 172))
    with pytest.raises(RecipeError, match=r"vllm cannot run .*down_proj in int4:g64:sym, which runs in subeight"):
        plan("weights: int4:g64", [linear("model.layers.0.mlp.down_proj", (64, 172))], engine="vllm")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("methods: [gptq, awq]", "awq stands after gptq, but a move changes the weights"),
        ("methods: [awq]", "no method that rounds; exactly one of gptq, .*rtn"),
        ("methods: [rtn, gptq]", "2 methods that round"),
        ("methods: []", "no method that rounds"),
        ("methods: [smooth, smooth, rtn]", "smooth stands twice"),
        ("methods: [gtpq]", "'gtpq' is not a method.*'gptq'"),
        ("methods: [{gptq: {dampin: 0.1}}]", "no option 'dampin'.*'damping'"),
        ("rules: [{match: '*.down_prj', keep: true}]", r"matches no linear.*Did you mean '\*.down_proj'"),
        ("rules: [{match: '*embed_toke?s', methods: [awq]}]", "rule 1: .*no method that rounds"),
        ("rules: [{match: '*.q_proj', methods: [awq, rtn]}]", "q_proj and .*k_proj read the same input.*awq and none"),
        ("inputs: int8:channel", "inputs int8:channel:sym has one scale per channel; use token or tensor"),
        ("inputs: int8:tensor:asym", "static and affine"),
        ("rules: [{match: '*.o_proj', weights: int8:token}]", "one scale per token, which is for inputs"),
        ("rules: [{match: '*.o_proj', weights: fp8}]\ninputs: int8:token", "fp8 cannot be multiplied with inputs"),
    ],
)
def test_an_impossible_recipe_is_one_sentence(text: str, says: str, linears: list[LinearInfo]) -> None:
    with pytest.raises(RecipeError, match=says) as error:
        plan(f"weights: int4\n{text}", linears)
    assert "\n" not in str(error.value)


def test_a_recipe_that_quantizes_nothing_is_refused(linears: list[LinearInfo]) -> None:
    with pytest.raises(RecipeError, match="quantizes nothing"):
        plan("rules: [{match: '*.down_proj', keep: true}]", linears)


def test_a_pattern_that_covers_only_what_is_kept_is_refused() -> None:
    head = linear("head.out", (8, 8), kind="head")
    with pytest.raises(RecipeError, match=r"covers only head.out.*write match: 'head.out'"):
        plan("weights: int4\nrules: [{match: 'head.*', weights: int8}]", [*llama(), head])


def test_an_engine_that_fuses_refuses_two_formats_in_one_matrix(linears: list[LinearInfo]) -> None:
    text = "weights: int4:g32\nrules: [{match: '*.0.*.v_proj', weights: int8:g32}]"
    with pytest.raises(RecipeError, match=r"q_proj \(int4:g32:sym\).*v_proj \(int8:g32:sym\) as one matrix"):
        plan(text, linears, engine="vllm")
    found = plan(text, linears, engine="transformers")
    assert found.site("model.layers.0.self_attn.q_proj").runs_in == ("transformers", "gguf", "subeight")
    assert "vllm" in found.site("model.layers.1.self_attn.q_proj").runs_in
    with pytest.raises(RecipeError, match=r"k_proj \(bfloat16\)"):
        plan("weights: int4:g32\nrules: [{match: '*.k_proj', keep: true}]", linears, engine="sglang")


def test_an_unknown_engine_names_the_nearest(linears: list[LinearInfo]) -> None:
    with pytest.raises(RecipeError, match="Did you mean 'vllm'"):
        plan("weights: int4", linears, engine="vlm")


@pytest.mark.parametrize(
    ("weights", "inputs", "runs"),
    [
        ("int4:g64", "null", "vllm sglang transformers gguf subeight"),
        ("int4:g32:fp16", "null", "vllm sglang transformers gguf subeight"),
        ("int4:g48", "null", "subeight"),
        ("int4:g16", "null", "vllm transformers subeight"),
        ("int4:g64:fp32", "null", "vllm sglang transformers subeight"),
        ("int3:g64", "null", "vllm transformers gguf subeight"),
        ("int8:channel", "int8:token", "vllm sglang transformers subeight"),
        ("int8:channel", "int8:tensor", "vllm sglang transformers subeight"),
        ("int4:g64", "int8:token", "vllm transformers subeight"),
        ("int4:g64", "int8:tensor", "transformers subeight"),
        ("int4:g64:asym", "int8:token", "subeight"),
        ("fp8", "fp8:token", "vllm sglang transformers subeight"),
        ("fp8:g64", "null", "transformers subeight"),
        ("nf4:g64", "null", "subeight"),
        ("mxfp4", "null", "gguf subeight"),
    ],
)
def test_which_engines_run_what(weights: str, inputs: str, runs: str) -> None:
    found = plan(f"weights: {weights}\ninputs: {inputs}", [linear("model.layers.0.mlp.up_proj", (64, 128))])
    assert found.sites[0].runs_in == tuple(runs.split())


def test_packed_zero_points_beside_another_format_are_not_loadable(linears: list[LinearInfo]) -> None:
    alone = plan("weights: int4:g64:asym", linears)
    assert "transformers" in alone.site("model.layers.0.mlp.up_proj").runs_in
    beside = plan("weights: int4:g64:asym\nrules: [{match: '*.o_proj', weights: int8}]", linears)
    assert beside.site("model.layers.0.mlp.up_proj").runs_in == ("gguf", "subeight")


def test_bits_and_bytes_count_what_is_stored(linears: list[LinearInfo]) -> None:
    found = plan("weights: int4:g64\nrules: [{match: '*.down_proj', keep: true}]", linears)
    inside = [item for item in linears if item.block is not None]
    kept = sum(item.count for item in inside if item.name.endswith("down_proj"))
    rest = sum(item.count for item in inside) - kept
    assert found.bytes == (rest * (4 + 16 / 64) + kept * 16) / 8
    assert found.bits_per_weight == pytest.approx(found.bytes * 8 / (rest + kept))
    single = [replace(item, dtype=torch.float32) for item in linears]
    assert resolve(parse_recipe("weights: int4"), single).site("lm_head").bits == 32


def test_the_fingerprint_is_of_what_is_decided(linears: list[LinearInfo]) -> None:
    base = plan("name: a\nweights: int4\nmethods: [gptq]", linears)
    same = plan("name: b\nweights: int8\nmethods: [gptq]\nrules: [{match: 'model.*', weights: int4}]", linears)
    default = plan("weights: int4\nmethods: [{gptq: {damping: 0.01}}]\ncalibration: {seed: 3}", linears)
    assert base.fingerprint == same.fingerprint == default.fingerprint
    other = [
        plan("weights: int4\nmethods: [{gptq: {damping: 0.02}}]", linears),
        plan("weights: int4\nmethods: [gptq]\ntap: parallel", linears),
        plan("weights: int4:g32\nmethods: [gptq]", linears),
        plan("weights: int4\nmethods: [gptq]\nrules: [{match: '*.0.*.o_proj', keep: true}]", linears),
    ]
    assert len({base.fingerprint, *(item.fingerprint for item in other)}) == 5


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_resolves_and_its_plan_survives_json(name: str, linears: list[LinearInfo]) -> None:
    found = resolve(load_recipe(name), linears)
    again = Plan.from_dict(json.loads(json.dumps(found.to_dict())))
    assert again == found and again.fingerprint == found.fingerprint
    assert 2 < found.bits_per_weight < 9


def test_the_table_and_the_summary_say_it_in_words(linears: list[LinearInfo]) -> None:
    rules = "rules: [{match: '*.0.*.o_proj', keep: true}]"
    found = plan(f"weights: int4\nmethods: [{{gptq: {{damping: 0.5}}}}]\n{rules}", linears)
    rows = found.table()
    assert len(rows) == len(linears) and all(set(row) == set(rows[0]) for row in rows)
    row = next(row for row in rows if row["linear"] == "model.layers.1.self_attn.o_proj")
    assert (row["weights"], row["methods"], row["shape"]) == ("int4:g64:sym", "gptq(damping=0.5)", "128 x 128")
    lines = found.summary()
    assert "model.layers.*.mlp.down_proj (2): int4:g64:sym by gptq(damping=0.5): recipe default" in lines
    assert "model.layers.*.self_attn.o_proj (1): bfloat16: rule 1: *.0.*.o_proj (kept)" in lines
    assert lines[-1].endswith(f"plan {found.fingerprint}") and "bits per weight" in lines[-1]


def test_an_unknown_site_is_an_error(linears: list[LinearInfo]) -> None:
    with pytest.raises(RecipeError, match="no linear called 'x'"):
        plan("weights: int4", linears).site("x")


def test_the_documented_example_is_a_recipe(linears: list[LinearInfo]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
    example = page.split("```yaml\n")[1].split("```")[0]
    found = plan(example, linears)
    assert found.recipe == "mixed-3.5"
    assert {str(site.weights) for site in found.quantized} == {"int4:g64:sym", "int8:g64:sym"}


def test_what_stands_apart_is_counted_before_a_weight_is_read(linears: list[LinearInfo]) -> None:
    plain = plan("weights: int4\nmethods: [gptq]", linears)
    apart = plan("weights: int4\nmethods: [{outliers: {percent: 1}}, gptq, {lowrank: {rank: 2}}]", linears)
    name = "model.layers.0.mlp.down_proj"
    rows, width = apart.site(name).linear.shape
    extra = 32 * int(0.01 * rows * width) + 32 * (rows + 1) + 16 * 2 * (rows + width)
    assert apart.site(name).bits == pytest.approx(plain.site(name).bits + extra / (rows * width))
    assert apart.site(name).runs_in == ("subeight",) and plain.site(name).runs_in != ("subeight",)


def test_rotated_formats_run_in_our_method_alone(linears: list[LinearInfo]) -> None:
    found = plan("weights: int4:g32:sym:had\ninputs: int4:token:had\nmethods: [gptq]", linears)
    assert {site.runs_in for site in found.quantized} == {("subeight",)}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("weights: int4\ninputs: int4:token:had", r"rotated inputs .* write weights: int4:g64:sym:had"),
        ("weights: int4:had\ninputs: int4:token", r"rotated weights and inputs that are not; write inputs: int4:token"),
        ("weights: int4:had\ninputs: int8:tensor:had", r"static inputs that are rotated"),
        ("weights: int4:had\nmethods: [outliers, gptq]", r"no outliers left; leave `had` or `outliers` out"),
    ],
)
def test_a_rotation_that_cannot_be_carried_out_is_refused(text: str, says: str, linears: list[LinearInfo]) -> None:
    with pytest.raises(RecipeError, match=says):
        plan(text, linears)
