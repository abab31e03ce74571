"""torchao's tensors taken apart, with their attributes in the metadata of the file."""

import json

import pytest
import torch
from safetensors.torch import save_file

from subeight.errors import ModelError
from subeight.models.read.quantized import quantized_tensors
from subeight.models.read.safetensors import index_file

CODES = torch.arange(-8, 8, dtype=torch.int8).repeat(4, 4)  # [4, 64]
SCALES = torch.linspace(0.1, 0.8, 8, dtype=torch.bfloat16).view(4, 2)


def opened(tmp_path, kind, said, **parts):
    tensors = {f"model.up._weight_{part}": value for part, value in {"qdata": CODES, "scale": SCALES, **parts}.items()}
    metadata = {"format": "pt"}
    if kind:
        metadata["model.up.weight"] = json.dumps({"_type": kind, "_data": said})
    save_file(tensors, tmp_path / "model.safetensors", metadata=metadata)
    return quantized_tensors({"quant_method": "torchao"}, dict(index_file(tmp_path / "model.safetensors")))


def int4(**changed):
    dtype = {"_type": "torch.dtype", "_data": "bfloat16"}
    target = {"_type": "torch.dtype", "_data": "int4"}
    return {"block_size": [1, 32], "dtype": dtype, "target_dtype": target, "activation_quantization": None, **changed}


def test_integers_by_group(tmp_path):
    zeros = torch.tensor([[1, -2]] * 4, dtype=torch.int8)
    codes, plain = opened(tmp_path, "IntxUnpackedToInt8Tensor", int4(), zero_point=zeros)
    expected = (CODES.float() - zeros.float().repeat_interleave(32, 1)) * SCALES.float().repeat_interleave(32, 1)
    assert torch.equal(plain["model.up.weight"].read(), expected.bfloat16().float())
    assert codes.format_words("model.up") == "int4:g32:asym (torchao)"
    assert codes.nbytes("model.up") == 256 + 16 + 8
    assert codes.inputs("model.up") is None
    assert str(codes.read("model.up").format) == "int4:g32:asym"


def test_eight_bits_with_rounded_inputs(tmp_path):
    said = {"block_size": [1, 64], "act_quant_kwargs": {"_type": "QuantizeTensorToInt8Kwargs", "_data": {}}}
    codes, plain = opened(tmp_path, "Int8Tensor", said, scale=SCALES[:, :1].contiguous())
    assert torch.equal(plain["model.up.weight"].read(), CODES.float() * SCALES[:, :1].float())
    assert codes.format_words("model.up") == "int8:channel:sym (torchao)"
    assert str(codes.inputs("model.up")[0]) == "int8:token:sym"


@pytest.mark.parametrize(
    ("kind", "said", "words"),
    [
        ("Int4TilePackedTo4dTensor", int4(), "dequantize it with torchao"),
        ("IntxUnpackedToInt8Tensor", int4(block_size=[4, 64]), "block of 4 rows"),
        (None, {}, "does not say which type"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path, kind, said, words):
    with pytest.raises(ModelError, match=words):
        opened(tmp_path, kind, said)[0].format_words("model.up")
