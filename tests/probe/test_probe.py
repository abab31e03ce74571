"""Mixtures of two models: their loss is that of the mixed checkpoint, and only the suffix is computed."""

from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from subeight.evals.passes import run_pass
from subeight.evals.scoring import loss_of
from subeight.models.align import align
from subeight.models.model import Model
from subeight.probe.probe import Probe, aligned_weight
from subeight.probe.swaps import Swaps
from tests.models.families import save
from tests.models.moves import move_scales
from tests.probe.mixtures import COMPUTING, question_of, rounded_copy


def probe_of(base: Path, other: Path, folder: Path) -> Probe:
    baseline, candidate = Model(base), Model(other)
    return Probe(baseline, candidate, align(baseline, candidate), question_of(baseline, folder), COMPUTING)


def mixed(base: Path, other: Path, names: set[str], folder: Path) -> Path:
    """The other checkpoint with some tensors of the base, written out."""
    folder.mkdir()
    for path in other.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    tensors, restored = load_file(other / "model.safetensors"), load_file(base / "model.safetensors")
    for name in names:
        tensors[name] = restored[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def probe(llama: Path, tmp_path: Path) -> Probe:
    return probe_of(llama, rounded_copy(llama, tmp_path / "other"), tmp_path)


def every(probe: Probe) -> frozenset[str]:
    return frozenset(x.name for x in probe.candidate.linears if x.block is not None)


def test_everything_restored_loses_exactly_nothing(probe: Probe) -> None:
    assert probe.whole().value > 0.001
    assert probe.restore(Swaps(weights=every(probe))).total.tolist() == [0.0] * len(probe.whole().total)


def test_nothing_damaged_loses_exactly_nothing(probe: Probe) -> None:
    assert probe.damage(Swaps()).value == 0.0
    assert probe.damage(Swaps(weights=every(probe))).value == probe.whole().value


def test_a_mixture_loses_what_the_mixed_checkpoint_loses(llama: Path, tmp_path: Path) -> None:
    other = rounded_copy(llama, tmp_path / "other")
    probe = probe_of(llama, other, tmp_path)
    names = {"model.layers.1.mlp.down_proj", "model.layers.2.self_attn.q_proj"}
    written = Model(mixed(llama, other, {f"{name}.weight" for name in names}, tmp_path / "mixed"))
    made = run_pass(written, probe.batches, COMPUTING, "mixed")
    assert probe.restore(Swaps(weights=frozenset(names))).value == loss_of(probe.question, made).value
    rest = every(probe) - names
    assert probe.damage(Swaps(weights=rest)).value == loss_of(probe.question, made).value


def test_only_what_follows_is_computed_again(probe: Probe) -> None:
    probe.whole()
    assert probe.spent.block_forwards == 3  # one run of the candidate, kept
    probe.restore(Swaps(weights=frozenset({"model.layers.2.mlp.up_proj"})))
    assert probe.spent.block_forwards == 4
    probe.damage(Swaps(weights=frozenset({"model.layers.2.mlp.up_proj"})))
    assert probe.spent.block_forwards == 7  # two blocks of the baseline in front, and the last one
    assert probe.spent.evaluations == 3


def test_swaps_leave_no_trace(probe: Probe) -> None:
    before = probe.whole().total.tolist()
    probe.restore(Swaps(weights=frozenset({"model.layers.0.self_attn.k_proj"})))
    assert probe.whole().total.tolist() == before


def test_another_weight_in_its_place(probe: Probe) -> None:
    name = "model.layers.1.mlp.gate_proj"
    given = {name: aligned_weight(probe, name)}
    assert probe.restore(Swaps(given=given)).value == probe.restore(Swaps(weights=frozenset({name}))).value
    worse = probe.restore(Swaps(given={name: torch.zeros_like(given[name])}))
    assert worse.value > probe.whole().value


def test_norms_embeddings_and_head_are_places_too(llama: Path, tmp_path: Path) -> None:
    other = mixed(llama, llama, set(), tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    places = {"model.norm.weight", "model.layers.1.input_layernorm.weight", "model.embed_tokens.weight"}
    head = "lm_head.weight"
    for name in (*places, head):
        tensors[name] = tensors[name] * (1 + 0.2 * torch.randn(tensors[name].shape, generator=generator))
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    # taken as it is: aligning would find the norms' scales
    baseline, candidate = Model(llama), Model(other)
    probe = Probe(baseline, candidate, align(baseline, baseline), question_of(baseline, tmp_path), COMPUTING)
    norms = frozenset(name for name in places if "norm" in name)
    everything = Swaps(weights=frozenset({"model.embed_tokens", "lm_head"}), parameters=norms)
    assert probe.restore(everything).value == 0.0
    assert probe.damage(everything).value == probe.whole().value
    for some in (Swaps(parameters=norms), Swaps(weights=frozenset({"lm_head"})), everything):
        full = {name.removesuffix(".weight") + ".weight" for name in some.names}
        written = Model(mixed(llama, other, full, tmp_path / f"mixed{len(full)}"))
        made = run_pass(written, probe.batches, COMPUTING, "mixed")
        assert probe.restore(some).value == pytest.approx(loss_of(probe.question, made).value, abs=1e-9)


def test_swaps_happen_in_the_candidates_gauge(llama: Path, tmp_path: Path) -> None:
    made = transformers.AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    move_scales(made)
    moved = save(made, tmp_path / "moved")
    for path in llama.glob("tokenizer*"):
        (moved / path.name).write_bytes(path.read_bytes())
    probe = probe_of(llama, rounded_copy(moved, tmp_path / "other"), tmp_path)
    whole = probe.whole().value
    assert whole > 0.001
    assert probe.restore(Swaps(weights=every(probe))).value < 1e-6
    assert 0 < probe.restore(Swaps(weights=frozenset({"model.layers.0.mlp.down_proj"}))).value < 1.5 * whole


def test_experts_share_a_parameter(mixtral: Path, tmp_path: Path) -> None:
    probe = probe_of(mixtral, rounded_copy(mixtral, tmp_path / "other"), tmp_path)
    whole = probe.whole().value
    expert = frozenset(name for name in every(probe) if ".experts.1." in name)
    others = every(probe) - expert
    assert whole > 0
    assert 0 < probe.restore(Swaps(weights=expert)).value != whole
    assert probe.restore(Swaps(weights=expert | others)).value == 0.0


def test_effects_follow_the_difference(llama: Path, tmp_path: Path) -> None:
    other = mixed(llama, llama, set(), tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    name = "model.layers.1.mlp.down_proj"
    tensors[f"{name}.weight"] *= 1.1
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    probe = probe_of(llama, other, tmp_path)
    shares = probe.effects().shares()
    assert next(iter(shares)) == name
    assert shares[name] == pytest.approx(1.0)
    assert probe.spent.block_forwards == 6
    probe.whole()
    assert probe.spent.block_forwards == 6  # the watched run is the candidate's trail


def test_blocks_that_do_not_fit_are_read_again(llama: Path, tmp_path: Path) -> None:
    other = rounded_copy(llama, tmp_path / "other")
    probe = probe_of(llama, other, tmp_path)
    small = Probe(
        Model(llama), Model(other), align(Model(llama), Model(other)), probe.question, COMPUTING, max_memory=1
    )
    place = Swaps(weights=frozenset({"model.layers.1.mlp.up_proj"}))
    assert small.restore(place).value == probe.restore(place).value
    assert len(small.pairs._kept) == 1
