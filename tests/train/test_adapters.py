"""Adapters on packed linears: what PEFT stores is what is read back, and merging is PEFT's own arithmetic."""

import json

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from subeight.errors import InputError
from subeight.models.model import Model
from subeight.train.adapters import LoraShape, add_adapters, chosen_targets, read_adapter, require_fits, save_adapter
from subeight.train.merging import merged
from subeight.train.qlora_base import load_base
from tests.engine.tiny import quantize
from tests.models.families import FAMILIES, build, save

NF4 = "{weights: 'nf4:g32', methods: [rtn]}"
ORIGIN = {"base": "one", "made_of": "two"}


@pytest.fixture(scope="module", params=["llama", "gpt2", "mixtral"])
def case(request, tmp_path_factory):
    """A family: the plain checkpoint, its quantized one, and a stored adapter with random factors."""
    folder = tmp_path_factory.mktemp(request.param)
    plain = save(build(FAMILIES[request.param].config), folder / "plain")
    quantize(plain, NF4, folder / "base", None, to="subeight")
    model = Model(folder / "base")
    base = load_base(model, torch.float32)
    wrapped = add_adapters(base, chosen_targets(model, ["all"]), LoraShape(4, 8.0), str(plain), 0)
    draw = torch.Generator().manual_seed(1)
    for name, value in wrapped.named_parameters():
        if "lora_B" in name:
            value.data = 0.1 * torch.randn(value.shape, generator=draw)
    save_adapter(wrapped, folder / "adapter", ORIGIN)
    return plain, model, wrapped, folder / "adapter"


def test_only_adapters_train_and_all_linears_but_experts_have_one(case):
    _, model, wrapped, _ = case
    trained = [name for name, value in wrapped.named_parameters() if value.requires_grad]
    assert trained and all(".lora_" in name for name in trained)
    linears = [v for v in model.views() if v.expert is None and v.info.kind in ("linear", "conv1d")]
    assert len(trained) == 2 * len(linears)


def test_plain_peft_puts_it_on_the_plain_base_and_merges_the_same(case):
    plain, _, _, adapter = case
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32), adapter)
    theirs = theirs.merge_and_unload()
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["fan_in_fan_out"] == ("GPT2" in type(theirs).__name__)
    ours = merged(Model(plain), read_adapter(adapter))
    changed = 0
    for name, value in theirs.named_parameters():
        torch.testing.assert_close(ours.weights.read(name).float(), value.detach(), rtol=1e-5, atol=1e-6)
        changed += not torch.equal(Model(plain).weights.read(name), ours.weights.read(name))
    assert changed == len(read_adapter(adapter).factors)


def test_kept_apart_it_is_the_merge_onto_the_dequantized_base(case):
    _, model, wrapped, adapter = case
    ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        apart = wrapped.eval()(ids).logits
    whole = merged(model, read_adapter(adapter))
    skeleton = AutoModelForCausalLM.from_config(model.skeleton.config, dtype=torch.float32).eval()
    skeleton.load_state_dict({name: whole.weights.read(name).float() for name in skeleton.state_dict()})
    with torch.no_grad():
        torch.testing.assert_close(skeleton(ids).logits, apart, rtol=1e-3, atol=1e-4)


def test_an_adapter_of_another_base_or_shape_is_refused(case, tmp_path):
    _, model, _, adapter = case
    require_fits(adapter, model, ORIGIN)
    with pytest.raises(InputError, match="another base"):
        require_fits(adapter, model, {**ORIGIN, "base": "three"})
    with pytest.raises(InputError, match="another base"):
        require_fits(adapter, model, {"base": None, "made_of": "three"})
    other = Model(save(build(FAMILIES["llama"].config.__class__(**SMALL)), tmp_path / "small"))
    (adapter / "subeight.json").rename(tmp_path / "mark")
    try:
        with pytest.raises(InputError, match="give the base that it was trained on"):
            require_fits(adapter, other, ORIGIN)
    finally:
        (tmp_path / "mark").rename(adapter / "subeight.json")


SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 64,
}


def test_another_kind_of_adapter_is_refused(case, tmp_path):
    _, _, _, adapter = case
    for path in adapter.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}))
    with pytest.raises(InputError, match="only plain LoRA"):
        read_adapter(tmp_path)


@pytest.mark.parametrize("shape", [(0, 1.0, 0.0), (4, 0.0, 0.0), (4, 1.0, 1.0)])
def test_shapes_that_cannot_be_are_refused(shape):
    with pytest.raises(InputError, match="cannot be"):
        LoraShape(*shape)
