"""bitsandbytes through transformers: 4 bits (nf4, fp4; with double quantization) or LLM.int8(), saved prequantized.

ENV/bin/python foreign_bitsandbytes.py MODEL_DIR OUT_DIR [DENSE] --method nf4-double|nf4|fp4|int8
"""

import bitsandbytes as bnb
import torch
from bitsandbytes.backends.default.ops import _dequantize_4bit_compute as dequantize
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from foreign import arguments, keep_dense, keep_tokenizer

given = arguments("nf4-double", "nf4", "fp4", "int8")
if given.method == "int8":
    config = BitsAndBytesConfig(load_in_8bit=True)
else:
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=given.method[:3],
        bnb_4bit_use_double_quant=given.method.endswith("double"),
        bnb_4bit_compute_dtype=torch.float32,
    )
model = AutoModelForCausalLM.from_pretrained(
    given.model, quantization_config=config, dtype=torch.float32, device_map="cpu"
)
model.save_pretrained(given.out)
keep_tokenizer(given.model, given.out)
dense = {}
for name, module in model.named_modules():
    if isinstance(module, bnb.nn.Linear4bit):
        state = module.weight.quant_state
        scales = state.absmax
        if state.nested:
            scales = bnb.functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
        # Not `dequantize_4bit`: the CPU kernel of 0.50.2 gives wrong weights where blocks do not divide the width.
        flat = module.weight.data.reshape(-1)
        dense[name] = dequantize(flat, scales.float(), state.code, state.blocksize, state.shape, state.dtype)
        dense[name] = dense[name].reshape(state.shape)
    elif isinstance(module, bnb.nn.Linear8bitLt):
        dense[name] = bnb.functional.int8_vectorwise_dequant(module.weight.data, module.weight.SCB)
keep_dense(dense, given.dense)
