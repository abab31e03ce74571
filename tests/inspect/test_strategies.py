"""Which strategy a recipe follows, and what an x-ray says to it."""

import pytest

from subeight.inspect.strategies import spoken_for, strategy_of
from subeight.models.model import Model
from subeight.recipes import parse_recipe, resolve


@pytest.fixture(scope="module")
def linears(tmp_path_factory):
    from tests.verbs.small import save_llama

    return Model(save_llama(tmp_path_factory.mktemp("model"))).linears


@pytest.mark.parametrize(
    ("recipe", "words", "decisive"),
    [
        ("{weights: 'int4:g64', methods: [gptq]}", "rounded (gptq)", "rounded"),
        ("{weights: 'int4:g64', methods: [rotate, gptq]}", "turned (rotate), rounded (gptq)", "turned"),
        ("{weights: 'int4:g64:sym:had', methods: [rtn]}", "turned (had), rounded (rtn)", "turned"),
        (
            "{weights: 'int4:g64', methods: [outliers, signround, distil]}",
            "set apart (outliers), rounded (signround), polished (distil)",
            "set apart",
        ),
    ],
)
def test_a_strategy_is_read_off_the_plan(linears, recipe, words, decisive):
    found = strategy_of(resolve(parse_recipe(recipe), linears))
    assert (found.words, found.decisive) == (words, decisive)


def seen(tails, systematic):
    linears = [{"block": 0, "kind": "linear", "tails": kind} for kind in tails]
    return linears, [{"systematic": [1] if found else []} for found in systematic]


@pytest.mark.parametrize(
    ("methods", "tails", "systematic", "sentence"),
    [
        ("[gptq]", ["light", "light", "few"], [True], "agrees: 2 of 3 linears have light tails"),
        ("[gptq]", ["heavy", "light", "few"], [True], "would not have said so: 1 of 3 linears"),
        ("[outliers, rtn]", ["heavy", "light", "few"], [True], "agrees: in 1 of 3 linears few values"),
        ("[outliers, rtn]", ["light"], [True], "would not have said so: in 0 of 1"),
        (
            "[rotate, rtn]",
            ["heavy", "light", "few"],
            [False, True],
            "agrees: 2 of 3 linears have heavy tails and 1 of 2",
        ),
        ("[rotate, rtn]", ["light"], [False], "would not have said so"),
    ],
)
def test_the_x_ray_speaks_for_it_or_not(linears, methods, tails, systematic, sentence):
    strategy = strategy_of(resolve(parse_recipe(f"{{weights: 'int4:g64', methods: {methods}}}"), linears))
    assert f"The x-ray {sentence}" in spoken_for(strategy, *seen(tails, systematic))


def test_moving_is_spoken_for_by_systematic_channels(tmp_path, linears):
    from subeight.inspect.strategies import Strategy

    strategy = Strategy({"moved": ("awq",), "rounded": ("rtn",)})
    assert "agrees: 1 of 2 inputs have channels" in spoken_for(strategy, *seen(["light"], [True, False]))
    assert "would not have said so: 0 of 2" in spoken_for(strategy, *seen(["light"], [False, False]))
