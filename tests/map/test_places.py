"""Which places a map has, and what the measured ones of a sampled map stand for."""

import pytest
import torch
import transformers

from subeight.errors import InputError
from subeight.evals.passes import Computing
from subeight.formats import Format
from subeight.map.mapfile import DAMAGE, RESCUE, map_of
from subeight.map.places import Place, places_of
from subeight.map.work import MapJob, State
from subeight.models.model import Model
from tests.models.families import COMMON, build, save

BLOCKS = 9
INT4 = Format.parse("int4:g32")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    config = transformers.LlamaConfig(**{**COMMON, "num_hidden_layers": BLOCKS})
    return Model(save(build(config), tmp_path_factory.mktemp("model") / "llama"))


def blocks_of(place: Place) -> list[int | None]:
    return sorted({linear.block for linear in place.covered}, key=lambda block: -1 if block is None else block)


@pytest.mark.parametrize("by", ["group", "linear"])
@pytest.mark.parametrize("every", [1, 3, 4, 100])
def test_every_linear_has_one_place_and_the_sums_stay(model: Model, by: str, every: int) -> None:
    whole, sampled = places_of(model, by), places_of(model, by, every)
    names = [linear.name for place in sampled for linear in place.covered]
    assert sorted(names) == sorted(linear.name for place in whole for linear in place.linears)
    assert len(set(names)) == len(names)
    assert sum(place.weights for place in sampled) == sum(place.weights for place in whole)
    bits = [sum(place.bits(INT4) * place.weights for place in places) for places in (whole, sampled)]
    assert bits[0] == pytest.approx(bits[1])
    if every == 1:
        assert sampled == whole


def test_the_middle_block_stands_for_its_run_and_the_ends_for_themselves(model: Model) -> None:
    places = places_of(model, "group", 3)
    runs = {place.at: blocks_of(place) for place in places}
    assert runs == {-1: [None], 0: [0], 2: [1, 2, 3], 5: [4, 5, 6], 7: [7], 8: [8], 9: [None]}
    assert all(place.stands_for == len(runs[place.at]) for place in places)
    middle = next(place for place in places if place.at == 2)
    assert all(".2." in name for name in middle.names)
    part = middle.within(3)
    assert part is not None and part.at == 3 and [n.replace(".3.", ".2.") for n in part.names] == list(middle.names)
    assert middle.within(4) is None


def test_less_than_one_block_is_refused(model: Model) -> None:
    with pytest.raises(InputError, match="--every was given 0"):
        places_of(model, "group", 0)


def test_a_cell_counts_for_every_block_that_it_stands_for(model: Model) -> None:
    place = next(place for place in places_of(model, "group", 3) if place.at == 2)
    row = {"place": place.name, "format": "int4", "kl": 0.5, "kl_ci": [0.4, 0.7], "categories": {"prose": 0.5}}
    numbers = {
        "formats": ["int4"], "by": "group", "metric": "kl", "methods": [], "places": [place.to_dict([INT4])],
        "cells": [{**row, "view": DAMAGE}, {**row, "view": RESCUE}], "whole": {}, "samples": [], "difficulty": {},
    }  # fmt: skip
    found = map_of(numbers)
    damage, rescue = found.cell(place.name, "int4"), found.cell(place.name, "int4", RESCUE)
    assert damage is not None and (damage.loss, damage.low, damage.high) == pytest.approx((1.5, 1.2, 2.1))
    assert damage.categories == {"prose": 1.5}
    assert rescue is not None and rescue.loss == 0.5, "a rescue is of the whole model anyway"
    assert found.places[0].weights == 3 * place.within(2).weights  # type: ignore[union-attr]
    assert len(found.places[0].linears) == 9


def test_a_mixture_changes_every_block_that_a_place_stands_for(model: Model) -> None:
    places = tuple(place for place in places_of(model, "group", 3) if 0 <= place.at < BLOCKS)
    path = str(model.directory)
    computing = Computing(torch.float32, torch.device("cpu"), quiet=True)
    state = State(MapJob(path, (path,), (None,), places, (), computing))
    cells = [(number, 0) for number in range(len(places))]
    for index in range(BLOCKS):
        expected = {linear.name for linear in model.linears if linear.block == index}
        assert state.mixture(cells, index).keys() == expected
