"""GPTQModel: GPTQ and GPTAQ with its own defaults for act-order and damping.

ENV/bin/python contest_gptqmodel.py MODEL_DIR IDS.pt OUT_DIR --method gptq --bits 3
"""

import os
import time
from importlib.metadata import version

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # it refuses to start on two cores without it

import torch
from gptqmodel import BACKEND, GPTQModel
from gptqmodel.quantization.config import GPTAQConfig, GPTQConfig

from contest import arguments, keep

given = arguments("gptq", "gptaq")
extra = {"gptaq": GPTAQConfig()} if given.method == "gptaq" else {}
config = GPTQConfig(bits=given.bits, group_size=given.group, sym=not given.asym, device="cpu", **extra)
model = GPTQModel.load(str(given.model), config, dtype=torch.float32)
rows = [{"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in given.ids]
model.quantize(rows, batch_size=4)
seconds = time.perf_counter() - given.began
packed = f"{given.out}.packed"
model.save(packed)
del model
loaded = GPTQModel.load(packed, device="cpu", dtype=torch.float16, backend=BACKEND.TORCH).model
weights = {
    f"{name}.weight": module.dequantize_weight().T.contiguous()
    for name, module in loaded.named_modules()
    if hasattr(module, "dequantize_weight")
}
# it stores a zero point for symmetric weights too
keep(given, weights, seconds, version=f"GPTQModel {version('gptqmodel')}", zero_points=True)
