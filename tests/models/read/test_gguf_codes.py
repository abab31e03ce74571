"""A quantized GGUF file as a model: which linears are quantized, in which type and bytes; a source all the same."""

import gguf
import numpy as np
import pytest
import torch

from subeight.errors import ModelError
from subeight.models.footprint import footprint
from subeight.models.model import Model
from subeight.models.read.gguf_codes import ggml_word
from subeight.verbs.quantize import require_full_precision
from tests.models.conftest import streamed

KEPT = "blk.1.ffn_down.weight"  # in 16 bits


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write(model: Model, path, kind: gguf.GGMLQuantizationType | None) -> None:
    """The tiny Llama as llama.cpp's converter lays it out, its matrices rounded to `kind`."""
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"t{place}" for place in range(config.vocab_size)])
    writer.add_token_scores([-float(place) for place in range(config.vocab_size)])
    writer.add_token_types([gguf.TokenType.NORMAL] * config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name in model.weights.names():
        weight = model.weights.read(name).float().numpy()
        target = names.get_name(name, try_suffixes=(".weight",))
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        count = next((heads[key] for key in heads if key in name), 0)
        weight = permuted(weight, count) if count else weight
        if weight.ndim < 2 or kind is None:
            writer.add_tensor(target, weight)
        elif target == KEPT:
            writer.add_tensor(target, weight.astype(np.float16))
        else:
            writer.add_tensor(target, gguf.quantize(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def plain(checkpoint) -> Model:
    return Model(checkpoint("llama"))


@pytest.mark.parametrize(("kind", "word", "bits"), [("Q4_0", "q4_0", 4.5), ("Q8_0", "q8_0", 8.5)])
def test_quantized_tensors_are_told_with_their_bytes(plain, tmp_path, ids, kind, word, bits):
    quant = gguf.GGMLQuantizationType[kind]
    write(plain, tmp_path / "model.gguf", quant)
    model = Model(tmp_path / "model.gguf")
    name = "model.layers.0.self_attn.q_proj"
    assert name in model.codes
    assert "model.layers.1.mlp.down_proj" not in model.codes
    assert "model.embed_tokens" in model.codes
    assert model.codes.format_words(name) == f"{word} (gguf)"
    assert model.codes.nbytes(name) == 64 * 64 * bits / 8
    assert model.codes.shape(name) == (64, 64)
    # rows that llama.cpp permutes are rounded alike in either order
    rounded = gguf.dequantize(gguf.quantize(plain.weights.read(f"{name}.weight").numpy(), quant), quant)
    assert torch.equal(model.codes.dense(name), torch.from_numpy(rounded))
    kept = 64 * 96
    weights = sum(linear.count for linear in model.linears if linear.block is not None)
    assert footprint(model).bytes == (weights - kept) * bits / 8 + 2 * kept
    with pytest.raises(ModelError, match="no codes in a format of ours"):
        model.codes.read(name)
    require_full_precision(model)  # a GGUF file may be all that there is of a model
    assert streamed(model, ids).isfinite().all()


def test_a_gguf_in_full_precision_has_no_codes(plain, tmp_path, ids):
    write(plain, tmp_path / "model.gguf", None)
    model = Model(tmp_path / "model.gguf")
    assert model.codes is None
    assert footprint(model).bits_per_weight == 32
    assert (streamed(model, ids) - streamed(plain, ids)).abs().max() < 1e-4


def test_ggml_names_k_quants_as_llama_cpp_does():
    assert [ggml_word(gguf.GGMLQuantizationType[kind]) for kind in ("Q4_K", "Q6_K", "IQ4_XS")] == [
        "q4_K",
        "q6_K",
        "iq4_xs",
    ]
