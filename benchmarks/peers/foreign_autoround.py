"""AutoRound: a few steps of signed rounding, packed as auto_round, auto_round:auto_gptq or auto_round:gptqmodel.

ENV/bin/python foreign_autoround.py MODEL_DIR OUT_DIR [DENSE] --method auto_round|auto_round:auto_gptq|...
"""

import torch
from auto_round import AutoRound
from transformers import AutoModelForCausalLM, AutoTokenizer

from foreign import LENGTH, ROWS, arguments, keep_dense, keep_tokenizer, load, rows

given = arguments("auto_round", "auto_round:auto_gptq", "auto_round:gptqmodel", "auto_round:auto_awq")
model = load(given.model)
rounding = AutoRound(
    model,
    tokenizer=AutoTokenizer.from_pretrained(given.model),
    bits=given.bits,
    group_size=given.group,
    sym=not given.asym,
    iters=10,
    nsamples=ROWS,
    seqlen=LENGTH,
    batch_size=4,
    device_map="cpu",
    dataset=[row[None] for row in rows(given.model)],
    enable_torch_compile=False,
)
rounding.quantize()
rounding.save_quantized(str(given.out), format=given.method, inplace=True)
keep_tokenizer(given.model, given.out)
loaded = AutoModelForCausalLM.from_pretrained(given.out, dtype=torch.float16, device_map="cpu")
dense = {}
for name, module in loaded.named_modules():
    if hasattr(module, "qweight"):  # its kernels dequantize and multiply: by the identity, exactly
        width = module.qweight.shape[0] * 32 // given.bits
        dense[name] = module(torch.eye(width, dtype=torch.float16)).T
keep_dense(dense, given.dense)
