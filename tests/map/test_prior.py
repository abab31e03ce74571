"""The prior is the KL of a small error, on average over its draws; the output error is its definition."""

from pathlib import Path

import pytest
import torch

from subeight.map.places import places_of
from subeight.map.prior import prior_of
from subeight.map.work import block_weights
from subeight.models.block import Block
from subeight.models.model import Model
from subeight.probe.bench import Bench, Suffixes
from subeight.text import evaluate_set
from tests.probe.mixtures import COMPUTING, llama, mixtral
from tests.verbs.small import write_text

__all__ = ["llama", "mixtral"]


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_it_is_the_loss_of_a_small_error(family: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    model = Model(request.getfixturevalue(family))
    text = write_text(tmp_path / "text.txt", words=200)
    samples = evaluate_set(str(text), model.tokenizer(), window=24, tokens=72)
    bench = Bench(Suffixes(model, COMPUTING), samples)
    places = [place for place in places_of(model) if 0 <= place.at < len(bench.suffixes)]
    noise = torch.Generator().manual_seed(1)
    blocks = [block_weights(Block(model, index, torch.float32)) for index in range(len(bench.suffixes))]
    lost = [
        {n: 3e-3 * w.abs().mean() * torch.randn(w.shape, generator=noise) for n, w in block.items()} for block in blocks
    ]
    draws = 60
    sums = [0.0] * len(places)
    for seed in range(draws):
        found = prior_of(bench, places, lambda at: [lost[at]], torch.Generator().manual_seed(seed))
        sums = [total + found.loss[at, 0] for at, total in enumerate(sums)]
    for at, place in enumerate(places):
        variant = {name: blocks[place.at][name] + lost[place.at][name] for name in place.names}
        (measured,) = bench.measure(place.at, [variant])
        assert sums[at] / draws == pytest.approx(measured.value, rel=0.5)
    measured_all = [
        bench.measure(p.at, [{n: blocks[p.at][n] + lost[p.at][n] for n in p.names}])[0].value for p in places
    ]
    assert sum(sums) / draws == pytest.approx(sum(measured_all), rel=0.15)


def test_the_output_error_is_its_definition(llama: Path, tmp_path: Path) -> None:
    model = Model(llama)
    text = write_text(tmp_path / "text.txt", words=200)
    bench = Bench(Suffixes(model, COMPUTING), evaluate_set(str(text), model.tokenizer(), window=24, tokens=48))
    (place,) = [p for p in places_of(model, "linear") if p.name == "model.layers.0.self_attn.q_proj"]
    block = Block(model, 0, torch.float32)
    weight = block_weights(block)[place.name]
    zero = {name: torch.zeros_like(value) for name, value in block_weights(block).items()}
    halved = {**zero, place.name: -0.5 * weight}
    blank = [
        {name: torch.zeros_like(v) for name, v in block_weights(Block(model, i, torch.float32)).items()} for i in (1, 2)
    ]
    errors = [[halved], [blank[0]], [blank[1]]]
    found = prior_of(bench, [place], errors.__getitem__, torch.Generator().manual_seed(0))
    assert found.output[0, 0] == pytest.approx(0.25, rel=1e-4)
