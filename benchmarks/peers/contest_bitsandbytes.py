"""bitsandbytes: nf4 or fp4 in blocks, 32-bit scales, data-free.

ENV/bin/python contest_bitsandbytes.py MODEL_DIR IDS.pt OUT_DIR --method nf4
"""

import time
from importlib.metadata import version

import bitsandbytes.functional as functional
import torch

from contest import arguments, keep, load

given = arguments("nf4", "fp4")
model = load(given)
weights = {}
with torch.no_grad():
    for name, module in model.model.layers.named_modules(prefix="model.layers"):
        if isinstance(module, torch.nn.Linear):
            codes, state = functional.quantize_4bit(module.weight, blocksize=given.group, quant_type=given.method)
            weights[f"{name}.weight"] = functional.dequantize_4bit(codes, state)
seconds = time.perf_counter() - given.began
keep(given, weights, seconds, version=f"bitsandbytes {version('bitsandbytes')}", scale_bits=32)
