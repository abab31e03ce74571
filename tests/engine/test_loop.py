"""The loop does what one would do by hand with the whole model in memory, and always the same."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from subeight.engine import loop
from subeight.engine.streams import MemoryStream
from subeight.formats import Format
from subeight.models.block import Block
from subeight.models.model import Model
from subeight.models.shell import Shell
from tests.engine.tiny import AWQ, AWQ_GPTQ, GPTQ, calibration, codes_of, hashes, quantize, quantize_all
from tests.oracles.engine_loop import quantize_by_hand

Find = Callable[..., Path]


def same_codes(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The share of equal codes, of linears that must be the same ones."""
    assert found.keys() == expected.keys()
    equal = sum(int((found[name] == expected[name]).sum()) for name in found)
    return equal / sum(codes.numel() for codes in expected.values())


@pytest.mark.parametrize("tap", ["sequential", "parallel", "exact"])
@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_codes_are_those_of_the_loop_by_hand(checkpoint: Find, tmp_path: Path, tap: str, method: str) -> None:
    source, ids = checkpoint("llama"), calibration()
    recipe = f"{{weights: 'int4:g32', methods: [{method}], tap: {tap}}}"
    quantize(source, recipe, tmp_path / "out", ids)
    plain = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    expected = quantize_by_hand(plain, ids, 4, Format.parse("int4:g32"), method, tap)
    assert same_codes(codes_of(tmp_path / "out"), {name: q.codes for name, q in expected.items()}) == 1.0


def test_taps_are_of_different_activations(checkpoint: Find, tmp_path: Path) -> None:
    found = {}
    for tap in ("sequential", "parallel", "exact"):
        quantize(checkpoint("llama"), GPTQ.replace("TAP", tap), tmp_path / tap, calibration())
        found[tap] = codes_of(tmp_path / tap)
    for one, other in (("sequential", "parallel"), ("parallel", "exact"), ("sequential", "exact")):
        assert same_codes(found[one], found[other]) < 0.999
    first = "model.layers.0.self_attn.q_proj"  # nothing was quantized before it
    assert torch.equal(found["sequential"][first], found["exact"][first])


@pytest.mark.parametrize("recipe", [GPTQ.replace("TAP", "sequential"), AWQ, AWQ_GPTQ.replace("TAP", "parallel")])
def test_two_runs_write_the_same_bytes(checkpoint: Find, tmp_path: Path, recipe: str) -> None:
    source = checkpoint("llama", torch.bfloat16)
    for name in ("one", "two"):
        quantize(source, recipe, tmp_path / name, calibration())
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")


def test_recipes_together_are_recipes_alone(checkpoint: Find, tmp_path: Path) -> None:
    source, ids = checkpoint("llama"), calibration()
    recipes = {
        "gptq": GPTQ.replace("TAP", "exact"),
        "awq": AWQ_GPTQ.replace("TAP", "exact"),
        "static": "{weights: 'int8:channel', inputs: 'int8:tensor', methods: [smooth, rtn], tap: exact}",
        "rtn": "{weights: 'int3:g32', methods: [rtn]}",
        "own": AWQ,
    }
    quantize_all(source, [(recipe, tmp_path / "together" / name) for name, recipe in recipes.items()], ids)
    back = list(reversed(recipes.items()))
    quantize_all(source, [(recipe, tmp_path / "backwards" / name) for name, recipe in back], ids)
    for name, recipe in recipes.items():
        quantize(source, recipe, tmp_path / "alone" / name, ids)
    alone = hashes(tmp_path / "alone")
    assert len(alone) == len(recipes) * 8  # three shards, index, two configs, outcomes of two blocks; no tokenizer
    assert hashes(tmp_path / "together") == alone
    assert hashes(tmp_path / "backwards") == alone


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("to", ["compressed-tensors", "dense"])
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_the_next_block_saw_what_was_written(
    checkpoint: Find,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    to: str,
    compute: torch.dtype,
) -> None:
    seen: list[Tensor] = []

    class Recorded(MemoryStream):
        def advance(self, function, shell) -> None:
            super().advance(function, shell)
            seen.append(self._hidden[0])

    monkeypatch.setattr(loop, "MemoryStream", Recorded)
    ids = calibration()
    quantize(checkpoint("qwen2", dtype), AWQ_GPTQ.replace("TAP", "sequential"), tmp_path / "o", ids, to, dtype=compute)
    written = Model(tmp_path / "o")
    shell = Shell(written, compute)
    hidden = Block(written, 0, compute)(shell.embed(ids[:4]), shell.call((4, ids.shape[1]), 0))
    assert len(seen) == 1
    assert torch.equal(hidden, seen[0])


def test_a_plan_that_reads_nothing_runs_no_block(
    checkpoint: Find, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("a block was run")

    monkeypatch.setattr(Block, "__call__", never)
    lane = quantize(checkpoint("llama"), "{weights: 'int4:g32', methods: [rtn]}", tmp_path / "o", calibration())
    assert len(codes_of(tmp_path / "o")) == 14
    assert all(outcome["output_error"] is None for outcome in lane.outcomes().values())


def test_only_what_the_plan_names_is_tapped(checkpoint: Find, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tapped: list[str] = []
    gather = loop.gather

    def watched(block, groups, batches, wanted, exact=None, **options):
        tapped.extend(group.name for group in groups)
        return gather(block, groups, batches, wanted, exact, **options)

    monkeypatch.setattr(loop, "gather", watched)
    recipe = "{weights: 'int4:g32', methods: [rtn], rules: [{match: '*.1.mlp.down_proj', methods: [gptq]}]}"
    lane = quantize(checkpoint("llama"), recipe, tmp_path / "out", calibration())
    assert tapped == ["model.layers.1.mlp.down_proj"]
    errors = {name: outcome["output_error"] for name, outcome in lane.outcomes().items()}
    assert [name for name, error in errors.items() if error is not None] == tapped
    assert 0 < errors[tapped[0]] < 0.05


def test_rules_decide_within_one_group(checkpoint: Find, tmp_path: Path) -> None:
    recipe = (
        "{weights: 'int4:g32', methods: [gptq], rules: "
        "[{match: '*.k_proj', weights: 'int8:g32'}, {match: '*.v_proj', keep: true}]}"
    )
    source = checkpoint("llama")
    quantize(source, recipe, tmp_path / "out", calibration())
    written, before = Model(tmp_path / "out"), Model(source)
    assert written.codes is not None
    assert str(written.codes.read("model.layers.0.self_attn.q_proj").format) == "int4:g32:sym"
    assert str(written.codes.read("model.layers.0.self_attn.k_proj").format) == "int8:g32:sym"
    kept = "model.layers.0.self_attn.v_proj"
    assert kept not in written.codes
    assert torch.equal(written.weights.read(f"{kept}.weight"), before.weights.read(f"{kept}.weight"))


BASELINE = "{weights: 'int3:g32', methods: [MOVE {gptq: {target: baseline}}], tap: TAP}"


def test_the_baselines_activations_run_beside_those_of_the_quantized_model(checkpoint: Find, tmp_path: Path) -> None:
    source, ids = checkpoint("llama"), calibration(24)
    lane = quantize(source, BASELINE.replace("MOVE", "").replace("TAP", "sequential"), tmp_path / "own", ids)
    assert {row["notes"]["target"] for row in lane.outcomes().values()} == {"baseline"}
    plain = quantize(source, "{weights: 'int3:g32', methods: [gptq]}", tmp_path / "plain", ids)
    first = "model.layers.0.self_attn.q_proj"  # nothing was quantized before it
    one, other = codes_of(tmp_path / "own"), codes_of(tmp_path / "plain")
    assert torch.equal(one[first], other[first]) and same_codes(one, other) < 0.99
    assert not plain.compares
    exact = quantize(source, BASELINE.replace("MOVE", "").replace("TAP", "exact"), tmp_path / "exact", ids)
    assert {row["notes"]["target"] for row in exact.outcomes().values()} == {"weight"}


@pytest.mark.parametrize("move", ["", "awq,"])
@pytest.mark.parametrize("on_disk", [False, True])
def test_killed_beside_the_baseline_and_resumed(
    checkpoint: Find, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, move: str, on_disk: bool
) -> None:
    source, ids = checkpoint("llama"), calibration()
    recipe = BASELINE.replace("MOVE", move).replace("TAP", "sequential")
    quantize(source, recipe, tmp_path / "whole", ids)
    real = Block.__call__
    for call in range(1, 200, 7):
        out, left = tmp_path / f"killed-{call}", iter(range(call))

        def dying(block: Block, hidden: Tensor, given: tuple, left=left) -> Tensor:
            if next(left, None) is None:
                raise KeyboardInterrupt
            return real(block, hidden, given)

        settings = {"scratch": tmp_path / f"scratch-{call}"} if on_disk else {}
        monkeypatch.setattr(Block, "__call__", dying)
        try:
            quantize(source, recipe, out, ids, **settings)
            finished = True
        except KeyboardInterrupt:
            finished = False
        monkeypatch.setattr(Block, "__call__", real)
        if finished:
            break
        quantize(source, recipe, out, ids, **settings)
        assert hashes(out) == hashes(tmp_path / "whole")
    assert call > 7, "it was never killed"


@pytest.mark.parametrize("tap", ["sequential", "exact"])
def test_a_block_rounded_as_a_whole_is_nearer_to_the_baselines_output(
    checkpoint: Find, tmp_path: Path, tap: str
) -> None:
    source, ids = checkpoint("llama"), calibration(24)
    recipe = f"{{weights: 'int2:g32:asym', methods: [{{signround: {{steps: 24}}}}], tap: {tap}}}"
    lane = quantize(source, recipe, tmp_path / "one", ids)
    assert lane.compares and len(codes_of(tmp_path / "one")) == 14
    quantize(source, recipe, tmp_path / "two", ids)
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")
    quantize(source, "{weights: 'int2:g32:asym', methods: [rtn]}", tmp_path / "plain", ids)
    baseline, shell = Model(source), Shell(Model(source), torch.float32)
    hidden, call = shell.embed(ids), shell.call(tuple(ids.shape), 0)
    exact, whole, plain = (
        Block(Model(path), 0, torch.float32)(hidden, call)
        for path in (baseline.directory, tmp_path / "one", tmp_path / "plain")
    )
    errors = [float(((b - exact).square().sum(-1) / exact.square().sum(-1)).mean()) for b in (whole, plain)]
    notes = next(iter(lane.outcomes().values()))["notes"]
    assert errors[0] < 0.9 * errors[1]
    assert notes["loss"] <= notes["loss_before"] and notes["loss"] == pytest.approx(errors[0], rel=0.3)  # of one batch


def test_a_rule_may_round_a_linear_of_such_a_block_alone(checkpoint: Find, tmp_path: Path) -> None:
    recipe = """{weights: 'int4:g32', methods: [{signround: {steps: 4}}],
                 rules: [{match: '*.down_proj', methods: [gptq]}, {match: '*.k_proj', keep: true}]}"""
    lane = quantize(checkpoint("llama"), recipe, tmp_path / "out", calibration())
    notes = {name: row["notes"] for name, row in lane.outcomes().items()}
    assert len(notes) == 12 and all(("loss" in row) != name.endswith("down_proj") for name, row in notes.items())
