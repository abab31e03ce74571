"""HQQ: data-free, asymmetric, 16-bit scales and zero points per group along the inputs.

ENV/bin/python contest_hqq.py MODEL_DIR IDS.pt OUT_DIR --bits 3
"""

import time
from importlib.metadata import version

import torch
from hqq.core.quantize import BaseQuantizeConfig, HQQLinear
from hqq.models.hf.base import AutoHQQHFModel

from contest import arguments, keep, load

given = arguments("hqq")
model = load(given)
config = BaseQuantizeConfig(nbits=given.bits, group_size=given.group, axis=1)
AutoHQQHFModel.quantize_model(model, quant_config=config, compute_dtype=torch.float32, device="cpu")
seconds = time.perf_counter() - given.began
modules = {name: module for name, module in model.named_modules() if isinstance(module, HQQLinear)}
weights = {f"{name}.weight": module.dequantize() for name, module in modules.items() if "lm_head" not in name}
keep(given, weights, seconds, version=f"HQQ {version('hqq')}", zero_bits=16)
