"""NVIDIA ModelOpt: awq_lite, symmetric, per group.

ENV/bin/python contest_modelopt.py MODEL_DIR IDS.pt OUT_DIR --bits 4
"""

import time
from importlib.metadata import version

import modelopt.torch.quantization as mtq
import torch

from contest import arguments, keep, load

given = arguments("awq_lite", "max")
model = load(given)
quantizers = [
    {"quantizer_name": "*", "enable": False},
    {
        "quantizer_name": "*weight_quantizer",
        "cfg": {"num_bits": given.bits, "block_sizes": {-1: given.group, "type": "static"}},
    },
    {"quantizer_name": "*lm_head*", "enable": False},
]


def forward(module: torch.nn.Module) -> None:
    with torch.no_grad():
        for part in given.ids.split(4):
            module(input_ids=part, use_cache=False)


model = mtq.quantize(model, {"quant_cfg": quantizers, "algorithm": given.method}, forward)
seconds = time.perf_counter() - given.began
# a scale of the inputs that it has not folded is undone in the weight: the function is the same
weights = {}
with torch.no_grad():
    for name, module in model.named_modules():
        quantizer = getattr(module, "weight_quantizer", None)
        if quantizer is None or not quantizer.is_enabled:
            continue
        weight, scale = module.weight, getattr(module.input_quantizer, "pre_quant_scale", None)
        rounded = quantizer(weight)
        weights[f"{name}.weight"] = rounded if scale is None else rounded * scale.reshape(1, -1)
keep(given, weights, seconds, version=f"ModelOpt {version('nvidia-modelopt')}")
