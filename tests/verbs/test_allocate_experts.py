"""`allocate` on a mixture: experts get what they are worth, and one format where an engine holds them together."""

from dataclasses import replace
from pathlib import Path

import pytest
import transformers as hf

from subeight.errors import InputError
from subeight.map.allocation import within_cost
from subeight.map.choices import units_of
from subeight.map.mapfile import read_map
from subeight.models.model import Model
from subeight.recipes import load_recipe, parse_recipe, resolve
from subeight.verbs.allocate import allocate
from subeight.verbs.planning import target_of
from subeight.verbs.quantize import quantize
from tests.models.families import COMMON, build, save
from tests.verbs.small import tokenizer
from tests.verbs.test_allocate import hand_made, options
from tests.verbs.test_allocate import lost as usual

RARE = 3  # of every block: it loses a thousandth of what others do


def lost(place: dict, format: str) -> float:
    rare = f".experts.{RARE}" in place["name"]
    down = place["name"].endswith(".w2")
    return usual(place, format) * (1e-3 if rare else 4.0 if down else 1.0)


@pytest.fixture(scope="module")
def mixture(house, tmp_path_factory):
    config = hf.MixtralConfig(
        **{**COMMON, "vocab_size": 320, "num_local_experts": 4, "max_position_embeddings": 128},
        bos_token_id=0,
        eos_token_id=1,
    )
    base = save(build(config), tmp_path_factory.mktemp("mixture") / "base")
    tokenizer().save_pretrained(base)
    return replace(house, base=base)


def allocated(house, folder: Path, by: str, engine: str, budget: str = "4.5 bits") -> tuple[dict, Path]:
    """The format of every linear, and the recipe's path."""
    made = hand_made(folder / f"map-{by}", house, by=by, loss=lost)
    numbers = allocate(str(made), budget, engine=engine, options=options(folder / f"out-{by}-{engine}")).numbers
    plan = resolve(load_recipe(numbers["recipe"]), Model(str(house.base)).linears, engine=engine)
    assert plan.bits_per_weight <= float(budget.split()[0])
    return {site.linear.name: str(site.weights) for site in plan.quantized}, Path(numbers["recipe"])


def expert(formats: dict, block: int, number: int) -> set[str]:
    inside = f"model.layers.{block}.block_sparse_moe.experts.{number}."
    return {format for name, format in formats.items() if name.startswith(inside)}


def test_a_rare_expert_gets_few_bits_where_no_engine_forbids_it(mixture, tmp_path: Path) -> None:
    formats, path = allocated(mixture, tmp_path, "expert", "any")
    for block in (0, 1):
        assert expert(formats, block, RARE) == {"int2:g32:sym"}
        assert expert(formats, block, 0) != {"int2:g32:sym"}
    plan = resolve(load_recipe(str(path)), Model(str(mixture.base)).linears)
    experts = [site for site in plan.quantized if site.linear.kind == "expert"]
    assert not any({"vllm", "transformers", "gguf"} & set(site.runs_in) for site in experts)
    assert target_of(plan) == "dense"
    result = quantize(str(mixture.base), str(path), options=mixture.options(out=tmp_path / "made"))
    assert result.numbers["bits_per_weight"] == pytest.approx(plan.bits_per_weight)


@pytest.mark.parametrize("by", ["expert", "linear"])
def test_vllm_gets_one_format_for_the_experts_of_a_block(mixture, tmp_path: Path, by: str) -> None:
    formats, _ = allocated(mixture, tmp_path, by, "vllm")
    for block in (0, 1):
        assert len(set.union(*(expert(formats, block, number) for number in range(4)))) == 1


def test_a_gguf_holds_the_experts_of_a_block_in_one_type_for_each_kind(mixture, tmp_path: Path) -> None:
    found = read_map(hand_made(tmp_path / "map", mixture, by="linear", loss=lost))
    runs = dict.fromkeys(found.formats, ("gguf",))
    found = replace(found, places=tuple(replace(place, runs_in=runs) for place in found.places))
    units = [unit for unit in units_of(found, engine="gguf") if unit.places[0].kind == "expert"]
    assert len(units) == 2 * 3  # blocks, kinds
    for unit in units:
        assert len(unit.places) == 4
        assert len({name.rpartition(".")[2] for place in unit.places for name in place.linears}) == 1
    chosen = within_cost(units, 5.5 / 8 * sum(place.weights for unit in units for place in unit.places)).formats()
    assert len(set(chosen.values())) > 1, "an allocation that mixes nothing tests nothing"


def test_a_recipe_that_mixes_experts_is_refused_for_engines_that_hold_them_together(mixture) -> None:
    linears = Model(str(mixture.base)).linears
    one = parse_recipe("weights: int4:g32:sym\nrules: [{match: '*.experts.3.w1', weights: 'int8:g32:sym'}]")
    for engine, words in (("vllm", "as one matrix"), ("gguf", "gguf cannot run")):
        with pytest.raises(InputError, match=words):
            resolve(one, linears, engine=engine)
    kind = parse_recipe("weights: int4:g32:sym\nrules: [{match: '*.experts.*.w2', weights: 'int8:g32:sym'}]")
    with pytest.raises(InputError, match="as one matrix"):
        resolve(kind, linears, engine="vllm")
    free = resolve(kind, [linear for linear in linears if linear.kind == "expert"], engine="any")
    assert all(("gguf" in site.runs_in) == ("gguf" in free.sites[0].runs_in) for site in free.sites)
