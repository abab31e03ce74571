"""A GGUF file of a Llama, as llama.cpp's converter lays it out, rounded by the gguf package's own quantizers.

ENV/bin/python foreign_gguf.py MODEL_DIR OUT.gguf [DENSE] --method q4_0|q8_0|q5_0|q4_1

Norms stay in float32, as llama.cpp leaves them; the rows of q_proj and k_proj are permuted for its rotary embedding.
The package has no quantizer of k-quants, which would need widths that 256 divides.
"""

import json

import gguf
import numpy as np
import torch

from foreign import arguments, keep_dense, load

given = arguments("q4_0", "q8_0", "q5_0", "q4_1")
kind = gguf.GGMLQuantizationType[given.method.upper()]
model = load(given.model)
config = model.config
heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
given.out.parent.mkdir(parents=True, exist_ok=True)
writer = gguf.GGUFWriter(given.out, "llama")
writer.add_context_length(config.max_position_embeddings)
writer.add_embedding_length(config.hidden_size)
writer.add_block_count(config.num_hidden_layers)
writer.add_feed_forward_length(config.intermediate_size)
writer.add_head_count(heads)
writer.add_head_count_kv(kv_heads)
writer.add_layer_norm_rms_eps(config.rms_norm_eps)
writer.add_rope_dimension_count(config.hidden_size // heads)
writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
writer.add_vocab_size(config.vocab_size)

vocabulary = json.loads((given.model / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
tokens = sorted(vocabulary, key=vocabulary.get)
special = {"<unk>": gguf.TokenType.UNKNOWN, "<s>": gguf.TokenType.CONTROL, "</s>": gguf.TokenType.CONTROL}
writer.add_tokenizer_model("llama")
writer.add_token_list(tokens)
writer.add_token_scores([-float(place) for place in range(len(tokens))])
writer.add_token_types([special.get(token, gguf.TokenType.NORMAL) for token in tokens])
writer.add_bos_token_id(config.bos_token_id)
writer.add_eos_token_id(config.eos_token_id)
writer.add_unk_token_id(0)


def permuted(weight: np.ndarray, count: int) -> np.ndarray:
    """The rows of each head in the order in which llama.cpp rotates them."""
    return weight.reshape(count, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def unpermuted(weight: np.ndarray, count: int) -> np.ndarray:
    return weight.reshape(count, -1, 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
dense = {}
for name, value in model.state_dict().items():
    if name == "lm_head.weight" and config.tie_word_embeddings:
        continue
    weight = value.float().numpy()
    target = names.get_name(name, try_suffixes=(".weight",))
    if weight.ndim < 2:
        writer.add_tensor(target, weight)
        continue
    count = heads if "q_proj" in name else kv_heads if "k_proj" in name else 0
    packed = gguf.quantize(permuted(weight, count) if count else weight, kind)
    writer.add_tensor(target, packed, raw_dtype=kind)
    found = gguf.dequantize(packed, kind)
    dense[name.removesuffix(".weight")] = torch.from_numpy(unpermuted(found, count) if count else found)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
keep_dense(dense, given.dense)
