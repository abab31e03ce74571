"""Every bad model is refused with ModelError, in one sentence."""

import json
import shutil
import struct
import time

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from safetensors.torch import load_file, save_file
from transformers import BertConfig, MambaConfig, T5Config

import subeight.models.source
from subeight.errors import ModelError
from subeight.models.model import Model, torch_device
from subeight.models.skeleton import Skeleton
from subeight.models.source import locate
from tests.models.conftest import streamed
from tests.models.families import FAMILIES, build, save


@pytest.fixture
def damaged(checkpoint, tmp_path):
    """A copy of a tiny Llama that may be damaged."""
    return shutil.copytree(checkpoint("llama"), tmp_path / "model")


@pytest.fixture
def sharded(tmp_path):
    return save(build(FAMILIES["llama"].config), tmp_path / "sharded", max_shard_size="100KB")


def refused(call, *words):
    with pytest.raises(ModelError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith((".", "?"))
    assert text.count(". ") == 0
    for word in words:
        assert word in text
    return text


def rewrite(directory, change):
    path = directory / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def everything(directory):
    return streamed(Model(directory), torch.zeros(1, 4, dtype=torch.long))


@pytest.mark.parametrize("name", ["./nothing", "/no/such/model", "no/such/model/here", "nothing", "~/nothing"])
def test_a_missing_model(name):
    refused(lambda: Model(name), "no model at", name, "smollm2")


def test_a_missing_gguf_file(tmp_path):
    refused(lambda: Model(tmp_path / "missing.gguf"), "no file", "missing.gguf")


def test_a_file_that_is_no_directory(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    refused(lambda: Model(tmp_path / "model.safetensors"), "no model at")


def test_a_directory_without_config(damaged):
    (damaged / "config.json").unlink()
    refused(lambda: Model(damaged), "no config.json")


def test_a_config_that_is_not_json(damaged):
    (damaged / "config.json").write_text("{", encoding="utf-8")
    refused(lambda: Model(damaged), "config")


def test_a_config_of_an_unknown_model_type(damaged):
    (damaged / "config.json").write_text('{"model_type": "abacus"}', encoding="utf-8")
    refused(lambda: Model(damaged), "abacus")


def test_a_directory_without_weights(damaged):
    (damaged / "model.safetensors").unlink()
    refused(lambda: Model(damaged), "holds no weights")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth"])
def test_pickle_weights(name, damaged):
    (damaged / "model.safetensors").rename(damaged / name)
    refused(lambda: Model(damaged), "pickle", name)


def test_a_missing_shard(sharded):
    lost = sorted(sharded.glob("*.safetensors"))[1]
    lost.unlink()
    refused(lambda: Model(sharded), "lacks the shard", lost.name)


def test_an_index_does_not_lead_out_of_the_directory(sharded):
    index = sharded / "model.safetensors.index.json"
    content = json.loads(index.read_text(encoding="utf-8"))
    secret = sharded.parent / "secret.safetensors"
    save_file({"model.norm.weight": torch.zeros(64)}, secret)
    content["weight_map"]["model.norm.weight"] = "../secret.safetensors"
    index.write_text(json.dumps(content), encoding="utf-8")
    refused(lambda: Model(sharded), "lacks the shard secret.safetensors")


def test_an_index_that_is_not_json(sharded):
    (sharded / "model.safetensors.index.json").write_text("{", encoding="utf-8")
    refused(lambda: Model(sharded), "model.safetensors.index.json")


@pytest.mark.parametrize("keep", [0, 4, 100, -10])
def test_a_truncated_shard(keep, sharded):
    path = sorted(sharded.glob("*.safetensors"))[1]
    path.write_bytes(path.read_bytes()[:keep])
    refused(lambda: Model(sharded), "truncated", path.name)


@pytest.mark.parametrize(
    "header",
    [
        "not json",
        "[]",
        '{"a": 1}',
        '{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [8, 4]}}',
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [-8, 4]}}',
        '{"a": {"dtype": "Q9", "shape": [1], "data_offsets": [0, 4]}}',
    ],
)
def test_a_damaged_header(header, damaged):
    data = header.encode()
    (damaged / "model.safetensors").write_bytes(struct.pack("<Q", len(data)) + data + bytes(16))
    refused(lambda: Model(damaged), "model.safetensors")


def test_a_file_that_is_cut_while_it_is_read(damaged):
    model = Model(damaged)
    path = damaged / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    refused(lambda: model.weights.read("model.norm.weight"), "ends before its tensors do")


def test_a_missing_tensor(damaged):
    rewrite(damaged, lambda tensors: tensors.pop("model.layers.1.mlp.down_proj.weight"))
    refused(lambda: Model(damaged).linears, "lacks the tensor", "model.layers.1.mlp.down_proj.weight")


def test_a_shape_that_is_not_the_configs(damaged):
    name = "model.layers.1.mlp.down_proj.weight"
    rewrite(damaged, lambda tensors: tensors.update({name: torch.zeros(64, 95)}))
    refused(lambda: everything(damaged), name, "[64, 95]", "[64, 96]")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["model.layers.1.mlp.down_proj.weight", "model.norm.weight"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_weight_that_is_not_finite(value, name, dtype, damaged):
    def plant(tensors):
        tensors.update({key: tensor.to(dtype) for key, tensor in tensors.items()})
        tensors[name].view(-1)[3] = value

    rewrite(damaged, plant)
    refused(lambda: everything(damaged), name, "NaN or Inf")


def test_a_large_weight_is_not_taken_for_inf(damaged):
    rewrite(damaged, lambda tensors: tensors.update({k: torch.full_like(t, 6e4).half() for k, t in tensors.items()}))
    assert bool((Model(damaged).weights.read("model.norm.weight") == 6e4).all())


@pytest.mark.parametrize(
    "config", [T5Config(num_layers=2, d_model=64), MambaConfig(hidden_size=64, num_hidden_layers=2)]
)
def test_an_architecture_without_a_decoder_of_known_blocks(config, tmp_path):
    config.save_pretrained(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    refused(lambda: Model(tmp_path).structures[0])


def test_an_architecture_without_a_list_of_blocks():
    config = FAMILIES["llama"].config.__class__.from_dict(FAMILIES["llama"].config.to_dict())
    config.num_hidden_layers = 1
    skeleton = Skeleton(config)
    skeleton.config.num_hidden_layers = 5
    refused(skeleton._find_blocks, "no single list of 5 decoder blocks", "model.layers (1)")


def test_an_unknown_quantization_method(damaged):
    path = damaged / "config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | {"quantization_config": {"quant_method": "abacus"}}), encoding="utf-8")
    refused(lambda: Model(damaged), "'abacus'")


@pytest.mark.parametrize("offline", [False, True])
def test_an_unknown_hub_id_without_network_is_told_quickly(offline, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    start = time.monotonic()
    refused(lambda: locate("nobody-at-all/no-such-model"), "nobody-at-all/no-such-model", "cannot be reached")
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("error", [ConnectionError("down"), RuntimeError("proxy says no"), TimeoutError()])
def test_whatever_the_hubs_client_raises_is_told(error, monkeypatch):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(subeight.models.source, "snapshot_download", fail)
    refused(lambda: locate("nobody-at-all/no-such-model"), "nobody-at-all/no-such-model", "cannot be reached")


def test_a_name_that_no_hub_could_have():
    refused(lambda: locate("a b/c?d"), "a b/c?d")


def test_no_tokenizer(damaged):
    refused(Model(damaged).tokenizer, "no tokenizer")


@pytest.mark.parametrize("data", [b"", b"GGUF", b"PK\x03\x04 something else", b"GGUF" + struct.pack("<IQQ", 3, 9, 9)])
def test_a_damaged_gguf(data, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    refused(lambda: Model(path), "not a readable GGUF file")


def test_a_gguf_of_an_architecture_that_transformers_does_not_load(tmp_path):
    path = tmp_path / "model.gguf"
    writer = GGUFWriter(path, "abacus")
    writer.add_tensor("a", np.zeros(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    refused(lambda: Model(path), "cannot read this GGUF")


def test_devices():
    assert torch_device("cpu").type == "cpu"
    refused(lambda: torch_device("abacus"), "abacus", "cpu, cuda")
    if not torch.cuda.is_available():
        refused(lambda: torch_device("cuda"), "no CUDA device")


def test_a_config_that_is_no_causal_lm(tmp_path):
    BertConfig(num_hidden_layers=2, hidden_size=64, num_attention_heads=4).save_pretrained(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    refused(lambda: everything(tmp_path))
