"""A checkpoint as a GGUF file: what it holds is read back bit for bit; what it cannot hold is refused by name."""

import gguf
import numpy as np
import pytest
import torch
import transformers as hf

from subeight.engine.transcode import stored_plan
from subeight.errors import OutputError, ParityError
from subeight.export import gguf as target
from subeight.export.gguf import table, write_gguf
from subeight.export.gguf_architectures import FAMILIES, describe, extra_tensors, family_of, laid_out
from subeight.export.gguf_read_back import require_same_weights
from subeight.models.model import Model
from tests.export.gguf_models import CONFIGS, LLAMA3, plain, rounded

MIXED = (
    "{weights: 'int4:g32:fp16', methods: [rtn], rules: [{match: '*.v_proj', weights: 'int8:g32:fp16'}, "
    "{match: '*.down_proj', weights: 'int5:g32:asym'}, {match: '*.1.*.o_proj', keep: true}, "
    "{match: '*embed_tokens', weights: 'int8:g32'}]}"
)


@pytest.mark.parametrize("name", ["tied", "qwen2", "gemma2"])
def test_every_weight_is_read_back_bit_for_bit(name: str, tmp_path) -> None:
    model = rounded(name, tmp_path, MIXED)
    path = tmp_path / "model.gguf"
    placed = write_gguf(model, stored_plan(model).sites, path, quiet=True)
    read = require_same_weights(path, model, placed)
    tied = 352 * 64 if model.skeleton.tied else 0
    assert read == sum(value.numel() for value in model.skeleton.model.state_dict().values()) - tied
    kinds = table(placed)
    assert kinds["q4_0"]["tensors"] == 9, "q, k, gate and up of both blocks, o of one"
    assert kinds["q8_0"]["tensors"] == 5, "v and the embeddings; down_proj, whose zero points reach beyond q5_0"
    assert sorted(tmp_path.glob("*.gguf*")) == [path], "nothing else is left"
    assert ("output.weight" in {tensor.name for tensor in placed}) == (not model.skeleton.tied)


def test_the_same_checkpoint_gives_the_same_bytes(tmp_path) -> None:
    model = rounded("llama", tmp_path, MIXED)
    for name in ("a", "b"):
        write_gguf(model, (), tmp_path / name, quiet=True)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_rows_in_another_order_are_found(tmp_path, monkeypatch) -> None:
    model = rounded("llama", tmp_path, MIXED)
    monkeypatch.setattr(target, "laid_out", lambda _name, rows, _config, _family: rows)
    placed = write_gguf(model, (), tmp_path / "model.gguf", quiet=True)
    with pytest.raises(ParityError, match=r"other numbers in blk\.0\.attn_q\.weight than model\.layers\.0\.self_attn"):
        require_same_weights(tmp_path / "model.gguf", model, placed)


def test_packed_rows_are_permuted_as_numbers_are() -> None:
    config = CONFIGS["llama"]
    family = family_of(config, [])
    rows = np.arange(64 * 36, dtype=np.uint32).reshape(64, 36)
    found = laid_out("model.layers.0.self_attn.q_proj.weight", rows, config, family)
    heads, half = config.num_attention_heads, 64 // config.num_attention_heads // 2
    for head in range(heads):  # llama.cpp's neighbours 2 i and 2 i + 1 are i and i + half of transformers
        start = head * 2 * half
        for place in range(half):
            assert np.array_equal(found[start + 2 * place], rows[start + place])
            assert np.array_equal(found[start + 2 * place + 1], rows[start + place + half])


def test_what_is_kept_keeps_its_sixteen_bits(tmp_path) -> None:
    model = plain("llama", tmp_path / "plain", torch.bfloat16)
    placed = write_gguf(model, (), tmp_path / "model.gguf", quiet=True)
    kinds = {tensor.name: tensor.kind.name for tensor in placed}
    assert kinds["blk.0.attn_q.weight"] == kinds["token_embd.weight"] == kinds["output.weight"] == "BF16"
    assert kinds["blk.0.attn_norm.weight"] == "F32", "vectors, as llama.cpp has them"
    require_same_weights(tmp_path / "model.gguf", model, placed)


def test_the_file_says_what_llama_cpp_asks_for(tmp_path) -> None:
    model = rounded("tied", tmp_path, MIXED)
    write_gguf(model, (), tmp_path / "model.gguf", quiet=True)
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    said = {key: field.contents() for key, field in fields.items() if not key.startswith("GGUF.")}
    expected = {
        "general.architecture": "llama", "general.file_type": gguf.LlamaFileType.MOSTLY_Q8_0, "llama.vocab_size": 352,
        "llama.block_count": 2, "llama.embedding_length": 64, "llama.feed_forward_length": 96,
        "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2, "llama.rope.dimension_count": 16,
        "llama.context_length": 128, "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.eos_token_id": 1, "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": model.tokenizer().chat_template,
    }  # fmt: skip
    assert {key: said[key] for key in expected} == expected
    assert said["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(model.config.rms_norm_eps)
    assert Model(tmp_path / "model.gguf").config.rope_parameters["rope_theta"] == 10000.0


def test_slower_turning_pairs_of_llama_3() -> None:
    # written down from the formula of llama 3.1's release: wavelengths against the length it was trained on
    found = extra_tensors(hf.LlamaConfig(**{**CONFIGS["llama"].to_dict(), "rope_parameters": LLAMA3}))
    frequencies = 1 / 10000.0 ** (np.arange(0, 16, 2) / 16)
    for factor, frequency in zip(found["rope_freqs.weight"], frequencies, strict=True):
        wavelength = 2 * np.pi / frequency
        if wavelength < 32 / 4:
            expected = 1.0
        elif wavelength > 32:
            expected = 8.0
        else:
            smooth = (32 / wavelength - 1) / 3
            expected = 1 / ((1 - smooth) / 8 + smooth)
        assert factor == pytest.approx(expected, rel=1e-5)
    assert extra_tensors(CONFIGS["llama"]) == {}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (hf.GPT2Config(), r"type gpt2 are not written as GGUF; llama, mistral, qwen2.*--to dense"),
        (hf.MixtralConfig(), "type mixtral are not written"),
        (hf.LlamaConfig(hidden_act="gelu"), "its activation is gelu, and llama.cpp computes silu"),
        (
            hf.LlamaConfig(rope_parameters={"rope_type": "dynamic", "factor": 2.0}),
            "rotary embedding is of the type dyn",
        ),
        (hf.MistralConfig(sliding_window=4096), "sees 4096 positions back"),
        (hf.Gemma2Config(query_pre_attn_scalar=100), "scaled by something else"),
    ],
)
def test_architectures_that_llama_cpp_would_compute_otherwise(config, words: str) -> None:
    with pytest.raises(OutputError, match=words):
        family_of(config, [])


def test_a_bias_without_a_place() -> None:
    with pytest.raises(OutputError, match=r"q_proj\.bias is a bias that the file has no place for"):
        family_of(CONFIGS["llama"], ["model.layers.0.self_attn.q_proj.bias"])
    family_of(CONFIGS["qwen2"], ["model.layers.0.self_attn.q_proj.bias"])


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ("nf4:g32", r"q_proj: nf4:g32 has values that no type of ggml has; int4:g32:sym:fp16 would do"),
        ("int4:g16", "q_proj: int4:g16:sym has groups of 16 columns.*int4:g32:sym:fp16"),
    ],
)
def test_formats_that_no_type_holds(weights: str, words: str, tmp_path) -> None:
    model = rounded("llama", tmp_path, f"{{weights: '{weights}', methods: [rtn]}}")
    with pytest.raises(OutputError, match=words):
        write_gguf(model, stored_plan(model).sites, tmp_path / "model.gguf", quiet=True)
    assert not list(tmp_path.glob("*.gguf*"))


def test_every_family_has_names_for_its_tensors() -> None:
    for name, config in CONFIGS.items():
        writer = gguf.GGUFWriter(None, "test")
        describe(writer, config, FAMILIES[config.model_type])
        assert any(key.endswith("rope.freq_base") for key in writer.kv_data[0]), name
