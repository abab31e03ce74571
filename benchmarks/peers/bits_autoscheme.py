"""AutoScheme (AutoRound): which of int2, int3, int4 and int8 each linear of the blocks gets under a budget of bits.

ENV/bin/python bits_autoscheme.py MODEL_DIR OUT.json --bits 2.5 [--calibration IDS.pt]

The budget counts a 16-bit scale and a zero point per group of 64. AutoScheme is told to leave them out
(`ignore_scale_zp_bits`) and gets the budget without them, which is the same constraint.
"""

import os
import tempfile
import time
from importlib.metadata import version

import torch
from auto_round import AutoRound, AutoScheme
from auto_round.calib_dataset import register_dataset
from auto_round.schemes import QuantizationScheme
from datasets import Dataset
from transformers import AutoTokenizer

from foreign import GROUP, PER_WEIGHT, PER_WIDTH, WIDTHS, choice_arguments, keep_choice, load, rows

# it keeps scores by the name of their rows, so those of others could come back
scores = tempfile.TemporaryDirectory()
os.environ["AR_AUTO_SCHEME_CACHE"] = scores.name


given = choice_arguments()
ids = torch.load(given.calibration) if given.calibration else rows(given.model, 16, 256)  # [rows, length]


@register_dataset("rows")
def calibration_rows(**_: object) -> Dataset:
    """The rows as they are, by a name: it takes no tensors here, and would tokenize a file of text again."""
    return Dataset.from_dict({"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist()})


model = load(given.model)
layers = model.model.layers.named_modules(prefix="model.layers")
sizes = {name: module.weight.numel() for name, module in layers if isinstance(module, torch.nn.Linear)}
calibration = {"dataset": "rows", "nsamples": len(ids), "seqlen": ids.shape[1], "batch_size": 4, "device_map": "cpu"}
scheme = AutoScheme(
    avg_bits=(given.bits - PER_WEIGHT) / PER_WIDTH,
    options=[QuantizationScheme(bits=b, group_size=GROUP, sym=False, data_type="int", act_bits=16) for b in WIDTHS],
    ignore_scale_zp_bits=True,
    **calibration,
)
rounding = AutoRound(
    model,
    tokenizer=AutoTokenizer.from_pretrained(given.model),
    scheme=scheme,
    enable_torch_compile=False,
    **calibration,
)
began = time.perf_counter()
rounding.post_init()  # the choice alone; `quantize` would go on to round
seconds = time.perf_counter() - began
chosen = {name: rounding.layer_config[name]["bits"] for name in sizes}
keep_choice(given, "autoscheme", version("auto-round"), seconds, chosen, sizes)
