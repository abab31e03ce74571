import json

import pytest
import torch

from subeight.errors import ModelError
from subeight.inspect import activations, x_ray
from subeight.inspect.activations import EXTREME, LARGE_SHARE, MASSIVE
from subeight.models.block import Block
from subeight.models.model import Model
from subeight.models.shell import Shell
from subeight.probe.watching import run_watched
from subeight.text import CalibrationSpec, calibrate
from tests.inspect.conftest import tokens

QKV = "model.layers.0.self_attn.q_proj+k_proj+v_proj"


def look(model, ids, **options):
    return x_ray(model, ids, dtype=torch.float32, quiet=True, **options)


def of(found, group):
    return next(row for row in found["inputs"] if row["group"] == group)


def test_every_linear_and_input_is_there_and_goes_into_json(plant):
    model = plant()
    found = look(model, tokens(4, 64))
    assert sorted(row["name"] for row in found["linears"]) == sorted(info.name for info in model.linears)
    assert {row["group"] for row in found["inputs"]} == {
        row["group"] for row in found["linears"] if row["block"] in (0, 1)
    }
    assert 3 <= len(found["summary"]) <= 6 and all(line.endswith(".") for line in found["summary"])
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_inputs_are_those_that_transformers_computes(plant):
    """Ranges and root mean squares of every input, by hooks on transformers' own model."""
    kept = {}
    model = plant(lambda whole: kept.update(whole=whole))
    ids = tokens(5, 48)
    inputs = {}
    for name, module in kept["whole"].named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda _, args, out, name=name: inputs.update({name: args[0]}))
    with torch.no_grad():
        kept["whole"](ids)
    for row in look(model, ids, batch=2)["inputs"]:
        value = inputs[row["group"].partition("+")[0]].double().flatten(0, 1)
        channels = value.square().mean(0).sqrt()
        assert row["absmax"] == pytest.approx(float(value.abs().max()), rel=1e-4)
        assert row["rms"] == pytest.approx(float(value.square().mean().sqrt()), rel=1e-4)
        assert row["typical"] == pytest.approx(float(channels.median()), rel=1e-4)
        assert row["ratio"] == pytest.approx(row["absmax"] / row["rms"])


def test_a_systematic_channel_is_found_by_its_definition(plant):
    def change(whole):
        whole.model.layers[0].input_layernorm.weight[5] = 60.0

    ids = tokens(4, 64)
    model = plant(change)
    row = of(look(model, ids, batch=1), QKV)
    norm = model.weights.read("model.layers.0.input_layernorm.weight")
    hidden = model.weights.read("model.embed_tokens.weight")[ids].flatten(0, 1).double()
    value = (hidden / (hidden.square().mean(1, keepdim=True) + 1e-6).sqrt() * norm).abs()
    typical = value.square().mean(0).sqrt().median()
    extreme = (value > EXTREME * typical).double().mean(0)
    assert [item["channel"] for item in row["systematic"]] == [5]
    assert row["systematic"][0]["tokens"] == pytest.approx(float(extreme[5]), abs=0.005) and extreme[5] > LARGE_SHARE
    assert row["massive"]["channels"] == [] and "1 systematic channel (5)" in row["means"]
    assert "smooth, rotate, or keep outlier columns" in row["means"]


def _massive_token(whole):
    """Token 7 alone makes channel 3 of the first MLP huge: its embedding looks at direction 11 like no other."""
    whole.model.embed_tokens.weight[:, 11] = 0
    whole.model.embed_tokens.weight[7] = 0
    whole.model.embed_tokens.weight[7, 11] = 1.0
    whole.model.layers[0].self_attn.o_proj.weight[11] = 0
    mlp = whole.model.layers[0].mlp
    for module in (mlp.gate_proj, mlp.up_proj):
        module.weight[3] = 0
        module.weight[3, 11] = 10.0


@pytest.mark.parametrize("batch", [1, 8])
def test_massive_tokens_are_told_from_systematic_channels(plant, batch):
    ids = tokens(8, 64)
    ids[:, 0] = 7
    row = of(look(plant(_massive_token), ids, batch=batch), "model.layers.0.mlp.down_proj")
    assert row["massive"]["channels"] == [3] and row["massive"]["positions"] == [0]
    assert row["massive"]["tokens"] == pytest.approx(8 / 512) and row["massive"]["first_share"] == 1.0
    assert row["systematic"] == [] and row["absmax"] > MASSIVE * row["typical"]
    assert "at the first position" in row["means"] and "outlier columns" in row["means"]


@pytest.mark.parametrize(("batch", "chunk"), [(8, 1 << 20), (2, 1 << 20), (3, 700)])
def test_massive_tokens_elsewhere_are_named(plant, monkeypatch, batch, chunk):
    monkeypatch.setattr(activations, "_CHUNK", chunk)
    ids = tokens(8, 64)
    ids[3, 20] = ids[5, 41] = 7
    found = look(plant(_massive_token), ids, batch=batch)
    row = of(found, "model.layers.0.mlp.down_proj")
    assert sorted(row["massive"]["positions"]) == [20, 41] and row["massive"]["first_share"] == 0.0
    assert row["massive"]["token_names"] == [["token 7", 2]] and "most often on token 7" in row["means"]
    assert any("massive activations in 1 of 8" in line for line in found["summary"])


def test_how_tokens_are_batched_changes_nothing(plant):
    ids = tokens(8, 64)
    ids[:, 0] = 7
    model = plant(_massive_token)
    one, many = look(model, ids, batch=8)["inputs"], look(model, ids, batch=1)["inputs"]
    for a, b in zip(one, many, strict=True):
        assert a["massive"]["channels"] == b["massive"]["channels"] and a["extreme"] == b["extreme"]
        assert a["absmax"] == pytest.approx(b["absmax"], rel=1e-4)


def test_calm_inputs_are_called_so(plant):
    row = of(look(plant(), tokens(4, 64)), QKV)
    assert "static ones too" in row["means"] and not row["massive"]["channels"] and not row["systematic"]


def test_an_input_that_overflows_is_an_error_with_its_name(plant):
    def change(whole):
        whole.model.layers[0].mlp.up_proj.weight.fill_(1e38)
        whole.model.layers[0].mlp.gate_proj.weight.fill_(1e38)

    with pytest.raises(ModelError, match=r"model\.layers\.[01]\..* holds NaN or Inf"):
        look(plant(change), tokens(2, 16))


@pytest.mark.real
def test_experts_have_inputs_of_their_own(mixture):
    ids = tokens(4, 128, high=500)
    found = x_ray(mixture, ids, dtype=torch.float32, quiet=True)
    experts = [row for row in found["inputs"] if ".experts." in row["group"]]
    assert len(experts) == 5 * 8 * 2
    first = [
        row for row in experts if row["block"] == 0 and "down_proj" not in row["group"] and "w2" not in row["group"]
    ]
    assert sum(row["tokens"] for row in first) == 2 * ids.numel()  # the top 2 of 8
    for row in experts:
        assert row["massive"]["channels"] == [] or row["massive"]["positions"]
        assert row["tokens"] or "nothing is known" in row["means"]


@pytest.mark.real
def test_which_tokens_an_expert_reads_is_seen(mixture):
    """Rows of each expert's input are the rows of the router's input that were said."""
    ids = tokens(2, 32, high=500)
    shell, block = Shell(mixture, torch.float32), Block(mixture, 0, torch.float32)
    shown = []
    run_watched(block, shell.embed(ids), shell.call((2, 32), 0), lambda *row: shown.append(row))
    router = next(rows for group, rows, _ in shown if group.linears[0].info.kind == "router")
    experts = [(group, rows, cells) for group, rows, cells in shown if group.is_expert]
    assert experts and all(cells is not None and len(cells) == len(rows) for _, rows, cells in experts)
    for group, rows, cells in experts:
        if group.width == router.shape[1]:
            assert torch.equal(rows, router[cells])


@pytest.mark.real
def test_the_massive_activations_of_smollm2():
    try:
        model = Model("smollm2")
    except ModelError as error:
        pytest.skip(str(error))
    ids = calibrate(CalibrationSpec(sequences=2, length=128), model.tokenizer()).ids
    found = x_ray(model, ids, dtype=torch.float32, quiet=True)
    for block, least in ((11, 2000), (28, 1500)):
        row = of(found, f"model.layers.{block}.mlp.down_proj")
        assert row["absmax"] > least and row["massive"]["positions"] == [0] and row["massive"]["channels"]
        assert row["massive"]["tokens"] == pytest.approx(2 / 256)
    row = of(found, "model.layers.14.self_attn.q_proj+k_proj+v_proj")
    assert row["systematic"][0]["channel"] == 247 and row["systematic"][0]["tokens"] > 0.9
    assert "model.layers.11.mlp.down_proj" in found["summary"][2]
