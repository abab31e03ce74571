"""AutoRound: rounding and ranges by signed gradients, block by block (`autoround`, its defaults but for the steps).

ENV/bin/python contest_autoround.py MODEL_DIR IDS.pt OUT_DIR --bits 3 --steps 200
"""

import time
from importlib.metadata import version

import torch
from auto_round import AutoRound
from transformers import AutoTokenizer

from contest import arguments, keep, load, of_blocks

given = arguments("autoround")
model = load(given, torch.bfloat16)
activations = {} if given.inputs == 16 else {"act_bits": given.inputs, "act_group_size": -1, "act_dynamic": True}
rounding = AutoRound(
    model,
    tokenizer=AutoTokenizer.from_pretrained(given.model),
    bits=given.bits,
    group_size=given.group,
    sym=not given.asym,
    iters=given.steps,
    nsamples=len(given.ids),
    seqlen=given.ids.shape[1],
    batch_size=4,
    device_map="cpu",
    dataset=[row[None] for row in given.ids],
    enable_torch_compile=False,
    **activations,
)
rounded, _ = rounding.quantize()
seconds = time.perf_counter() - given.began
keep(given, of_blocks(rounded), seconds, version=f"auto-round {version('auto-round')}", steps=given.steps)
