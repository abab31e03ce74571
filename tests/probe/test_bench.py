"""Variants measured together: each loses what it loses alone, and what is unchanged loses exactly nothing."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from subeight.models.align import align
from subeight.models.block import Block
from subeight.models.model import Model
from subeight.probe.bench import Bench, Suffixes
from subeight.probe.probe import Probe
from subeight.probe.swaps import Swaps
from subeight.text import evaluate_set
from tests.probe.mixtures import COMPUTING, question_of, rounded_copy
from tests.verbs.small import save_llama, text_rows, write_rows, write_text


@pytest.fixture(params=["llama", "mixtral"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Model, Model, Probe]:
    base = request.getfixturevalue(request.param)
    baseline, candidate = Model(base), Model(rounded_copy(base, tmp_path / "other"))
    gauge = align(baseline, candidate)
    return baseline, candidate, Probe(baseline, candidate, gauge, question_of(baseline, tmp_path), COMPUTING)


def evaluation(model: Model, folder: Path):
    text = write_text(folder / "text.txt", words=200)
    return evaluate_set(str(text), model.tokenizer(), window=24, tokens=240)


def weights_of(model: Model, index: int, names: list[str]) -> dict[str, torch.Tensor]:
    block = Block(model, index, torch.float32)
    return {view.info.name: block.weight(view) for view in block.structure.linears() if view.info.name in names}


def test_each_loses_what_it_loses_alone(pair, tmp_path: Path) -> None:
    baseline, candidate, probe = pair
    bench = Bench(Suffixes(baseline, COMPUTING), evaluation(baseline, tmp_path))
    places = [[x.name for x in baseline.linears if x.block == 1][at : at + 2] for at in (0, 2, 4)]
    found = bench.measure(1, [{}, *(weights_of(candidate, 1, names) for names in places)])
    assert not found[0].total.any()
    for names, loss in zip(places, found[1:], strict=True):
        alone = probe.damage(Swaps(weights=frozenset(names)))
        assert loss.value > 0 and loss.count.tolist() == alone.count.tolist()
        assert loss.total == pytest.approx(alone.total, rel=1e-2, abs=1e-6)


def test_rescue_is_the_candidate_with_a_place_restored(pair, tmp_path: Path) -> None:
    baseline, candidate, probe = pair
    exact = Bench(Suffixes(baseline, COMPUTING), evaluation(baseline, tmp_path))
    bench = Bench(Suffixes(candidate, COMPUTING), evaluation(baseline, tmp_path), against=exact)
    names = [x.name for x in baseline.linears if x.block == 0][:3]
    whole, rescued = bench.measure(0, [{}, weights_of(baseline, 0, names)])
    assert whole.value == pytest.approx(probe.whole().value, rel=1e-3)
    assert rescued.value == pytest.approx(probe.restore(Swaps(weights=frozenset(names))).value, rel=1e-3)


def test_a_mixture_is_the_model_with_those_weights(pair, tmp_path: Path) -> None:
    baseline, candidate, probe = pair
    bench = Bench(Suffixes(baseline, COMPUTING), evaluation(baseline, tmp_path))
    names = [x.name for x in baseline.linears if x.block in (0, 2)][::2]
    mixed = bench.mixed(lambda index: weights_of(candidate, index, names))
    assert mixed.total == pytest.approx(probe.damage(Swaps(weights=frozenset(names))).total, rel=1e-2, abs=1e-6)
    assert not bench.mixed(lambda index: {}).total.any()


@pytest.mark.parametrize(("name", "index"), [("model.embed_tokens", -1), ("lm_head", 3)])
def test_embeddings_and_head_are_places_too(llama: Path, tmp_path: Path, name: str, index: int) -> None:
    baseline = Model(llama)
    bench = Bench(Suffixes(baseline, COMPUTING), evaluation(baseline, tmp_path))
    weight = baseline.weights.read(f"{name}.weight").float()
    same, other = bench.measure(index, [{name: weight}, {name: weight + 0.05 * weight.flip(0)}])
    assert not same.total.any() and (other.total > 0).all()
    assert bench.cost.token_blocks == bench.tokens * 3 * (2 if index < 0 else 1) + (
        bench.tokens * 3 if index < 0 else 0
    )


def test_packs_change_nothing(pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    baseline, candidate, _ = pair
    bench = Bench(Suffixes(baseline, COMPUTING), evaluation(baseline, tmp_path))
    names = [x.name for x in baseline.linears if x.block == 0]
    variants = [weights_of(candidate, 0, [name]) for name in names[:4]]
    whole = bench.measure(0, variants)
    monkeypatch.setattr("subeight.probe.bench._PACKED", 1)
    for a, b in zip(whole, bench.measure(0, variants), strict=True):
        assert a.total == pytest.approx(b.total, rel=1e-3, abs=1e-9)


def test_the_rise_of_the_nll_is_measured_too(pair, tmp_path: Path) -> None:
    baseline, candidate, _ = pair
    bench = Bench(Suffixes(baseline, COMPUTING), evaluation(baseline, tmp_path), metric="nll")
    names = [x.name for x in baseline.linears if x.block == 1]
    (loss,) = bench.measure(1, [weights_of(candidate, 1, names)])
    question = question_of(baseline, tmp_path)
    probe = Probe(baseline, candidate, align(baseline, candidate), question, COMPUTING, metric="nll")
    assert loss.value == pytest.approx(probe.damage(Swaps(weights=frozenset(names))).value, rel=1e-3, abs=1e-6)


def test_a_tied_head_goes_with_the_embeddings(tmp_path: Path) -> None:
    baseline = Model(save_llama(tmp_path / "tied", num_hidden_layers=3, tie_word_embeddings=True))
    name = "model.embed_tokens"
    weight = baseline.weights.read(f"{name}.weight").float()
    changed = weight + 0.05 * weight.flip(0)
    (tmp_path / "other").mkdir()
    for path in (tmp_path / "tied").iterdir():
        shutil.copy(path, tmp_path / "other")
    tensors = load_file(tmp_path / "other" / "model.safetensors")
    tensors[f"{name}.weight"] = changed.to(tensors[f"{name}.weight"].dtype)
    save_file(tensors, tmp_path / "other" / "model.safetensors", metadata={"format": "pt"})
    candidate = Model(tmp_path / "other")
    probe = Probe(baseline, candidate, align(baseline, candidate), question_of(baseline, tmp_path), COMPUTING)
    suffixes = Suffixes(baseline, COMPUTING)
    bench = Bench(suffixes, evaluation(baseline, tmp_path))
    same, other = bench.measure(-1, [{name: weight}, {name: changed}])
    assert not same.total.any() and other.total == pytest.approx(probe.whole().total, rel=1e-2, abs=1e-6)
    suffixes.keep_shell({name: changed})
    kept = Bench(
        suffixes, evaluation(baseline, tmp_path), against=Bench(Suffixes(baseline, COMPUTING), bench._evaluation)
    )
    assert kept.measure(0, [{}])[0].total == pytest.approx(other.total, rel=1e-3, abs=1e-7)


def test_a_model_that_does_not_fit_loses_the_same(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    baseline, other = Model(llama), Model(rounded_copy(llama, tmp_path / "other"))
    rows = write_rows(tmp_path / "rows.jsonl", text_rows(5))
    samples = evaluate_set(str(rows), baseline.tokenizer(), window=100)
    variants = [{}, weights_of(other, 0, ["model.layers.0.mlp.up_proj"])]
    expected = Bench(Suffixes(baseline, COMPUTING), samples).measure(0, variants)
    small = Bench(Suffixes(baseline, COMPUTING, max_memory=1), samples)
    assert len(small.batches) > 1
    small.whole()
    loaded: list[int] = []
    before = Block.__init__

    def watched(self, model, index, *args, **options) -> None:
        loaded.append(index)
        before(self, model, index, *args, **options)

    monkeypatch.setattr(Block, "__init__", watched)
    found = small.measure(0, variants)
    for a, b in zip(expected, found, strict=True):
        assert a.total.tolist() == b.total.tolist()
    assert loaded == sorted(set(loaded)), "every block is read once for all batches and all variants"


def test_the_last_blocks_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A suffix that is run again and again finds its end in memory, though all of it does not fit."""
    model = Model(save_llama(tmp_path / "deep", num_hidden_layers=6))
    size = sum(p.numel() * 4 for p in model.skeleton.blocks[0].parameters())
    suffixes = Suffixes(model, COMPUTING, max_memory=3 * size)
    for index in range(6):
        assert suffixes[index].index == index
    loaded: list[int] = []
    before = Block.__init__

    def watched(self, model, index, *args, **options) -> None:
        loaded.append(index)
        before(self, model, index, *args, **options)

    monkeypatch.setattr(Block, "__init__", watched)
    for index in range(1, 6):
        suffixes[index]
    assert loaded == [1, 2, 3]
    assert len(suffixes._kept) == 3
