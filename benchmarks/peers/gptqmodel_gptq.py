"""GPTQModel's GPTQ: int4, symmetric, groups of 64, its own defaults for act-order and damping.

ENV/bin/python gptqmodel_gptq.py MODEL IDS.pt OUT THREADS
"""

import json
import os
import sys
import time

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # it refuses to start on two cores without it

import torch
from gptqmodel import BACKEND, GPTQModel
from gptqmodel.quantization.config import GPTQConfig
from transformers import AutoTokenizer

model_path, ids_path, out, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
rows = [{"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in torch.load(ids_path)]
began = time.perf_counter()
model = GPTQModel.load(model_path, GPTQConfig(bits=4, group_size=64, sym=True, device="cpu"), dtype=torch.float32)
model.quantize(rows, batch_size=4)
seconds = time.perf_counter() - began
packed = f"{out}.packed"
model.save(packed)
del model
loaded = GPTQModel.load(packed, device="cpu", dtype=torch.float16, backend=BACKEND.TORCH).model
for name, module in list(loaded.named_modules()):
    if hasattr(module, "dequantize_weight"):
        weight = module.dequantize_weight().T.contiguous().float()
        dense = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        dense.weight = torch.nn.Parameter(weight)
        parent, _, child = name.rpartition(".")
        setattr(loaded.get_submodule(parent), child, dense)
state = {name: value.float() for name, value in loaded.state_dict().items()}
from transformers import AutoConfig, AutoModelForCausalLM  # noqa: E402

plain = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model_path), dtype=torch.float32)
plain.load_state_dict(state, strict=False)
plain.tie_weights()
plain.save_pretrained(out)
AutoTokenizer.from_pretrained(model_path).save_pretrained(out)
print(json.dumps({"seconds": seconds}))
