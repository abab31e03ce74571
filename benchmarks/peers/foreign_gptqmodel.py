"""GPTQModel: GPTQ of the given bits and groups, also with columns in activation order, as `gptq` (v1) or `gptq_v2`.

ENV/bin/python foreign_gptqmodel.py MODEL_DIR OUT_DIR [DENSE] --method gptq|gptq_v2|actorder
"""

import os

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # it refuses to start on two cores without it

import torch
from gptqmodel import BACKEND, GPTQModel
from gptqmodel.quantization.config import GPTQConfig

from foreign import arguments, keep_dense, keep_tokenizer, rows

given = arguments("gptq", "gptq_v2", "actorder")
settings = {"bits": given.bits, "group_size": given.group, "sym": not given.asym, "device": "cpu"}
layout = "gptq_v2" if given.method == "gptq_v2" else "gptq"
config = GPTQConfig(**settings, desc_act=given.method == "actorder", format=layout)
batches = [{"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in rows(given.model)]
model = GPTQModel.load(str(given.model), config, dtype=torch.float32)
model.quantize(batches, batch_size=4)
model.save(str(given.out))
del model
keep_tokenizer(given.model, given.out)
loaded = GPTQModel.load(str(given.out), device="cpu", dtype=torch.float16, backend=BACKEND.TORCH).model
found = {name: module for name, module in loaded.named_modules() if hasattr(module, "dequantize_weight")}
keep_dense({name: module.dequantize_weight().T for name, module in found.items()}, given.dense)
