"""Model-Optimizer's auto_quantize: which of int2, int3, int4 and int8 each linear of the blocks gets within a budget.

ENV/bin/python bits_modelopt.py MODEL_DIR OUT.json --bits 2.5 [--calibration IDS.pt]

The budget (bits per weight) counts a 16-bit scale and a zero point per group of 64: each format states its
`effective_bits` with them. Its integers are symmetric, so it weighs the errors of symmetric rounding. The head stays as
it is and outside the average, and no linear may stay at 16 bits. q, k and v of a block share one format, and so do gate
and up: these are its own grouping rules.
"""

import os
import time
from importlib.metadata import version

os.environ["HF_HUB_OFFLINE"] = "1"

import modelopt.torch.quantization as mtq
import torch

from foreign import GROUP, PER_WEIGHT, PER_WIDTH, WIDTHS, choice_arguments, keep_choice, load, rows


def form(bits: int) -> dict:
    """Symmetric weights of so many bits in groups, everything else left alone."""
    weight = {"num_bits": bits, "block_sizes": {-1: GROUP, "type": "static"}}
    return {
        "quant_cfg": [
            {"quantizer_name": "*", "enable": False},
            {"quantizer_name": "*weight_quantizer", "cfg": weight},
        ],
        "algorithm": "max",
        "effective_bits": bits * PER_WIDTH + PER_WEIGHT,
    }


given = choice_arguments()
ids = torch.load(given.calibration) if given.calibration else rows(given.model, 16, 256)  # [rows, length]
batches = [{"input_ids": pair, "labels": pair} for pair in ids.split(2)]
forms = [form(bits) for bits in WIDTHS]
model = load(given.model)
began = time.perf_counter()
model, state = mtq.auto_quantize(
    model,
    constraints={"effective_bits": given.bits, "cost": {"excluded_module_name_patterns": ["lm_head"]}},
    quantization_formats=forms,
    module_search_spaces=[
        {"module_name_patterns": ["model.layers.*"], "quantization_formats": forms, "allow_no_quant": False}
    ],
    data_loader=batches,
    forward_step=lambda model, batch: model(**batch, use_cache=False),
    loss_func=lambda output, _: output.loss,
    disabled_layers="lm_head",
    num_calib_steps=len(batches),
    num_score_steps=len(batches),
    method="gradient",
)
seconds = time.perf_counter() - began
if not state["best"]["is_satisfied"]:
    raise SystemExit(f"auto_quantize found no choice within {given.bits} bits.")
layers = model.model.layers.named_modules(prefix="model.layers")
linears = {name: module for name, module in layers if isinstance(module, torch.nn.Linear)}
chosen = {name: linear.weight_quantizer.num_bits for name, linear in linears.items()}
sizes = {name: linear.weight.numel() for name, linear in linears.items()}
keep_choice(given, "modelopt", version("nvidia-modelopt"), seconds, chosen, sizes)
