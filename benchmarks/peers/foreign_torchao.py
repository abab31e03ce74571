"""torchao through transformers: integers by group or channel, one code to a byte, as transformers 5 saves them.

ENV/bin/python foreign_torchao.py MODEL_DIR OUT_DIR [DENSE] --method int4|int8|w8a8
"""

import torch
from torchao.quantization import (
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    IntxWeightOnlyConfig,
    PerGroup,
)
from transformers import AutoModelForCausalLM, TorchAoConfig

from foreign import arguments, keep_dense, keep_tokenizer

given = arguments("int4", "int8", "w8a8")
kinds = {
    "int4": lambda: IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(given.group)),
    "int8": Int8WeightOnlyConfig,
    "w8a8": Int8DynamicActivationInt8WeightConfig,
}
model = AutoModelForCausalLM.from_pretrained(
    given.model, quantization_config=TorchAoConfig(kinds[given.method]()), dtype=torch.bfloat16, device_map="cpu"
)
model.save_pretrained(given.out)
keep_tokenizer(given.model, given.out)
weights = {name.removesuffix(".weight"): value for name, value in model.named_parameters() if name.endswith("weight")}
found = {name: value for name, value in weights.items() if hasattr(value, "dequantize") and hasattr(value, "qdata")}
keep_dense({name: value.dequantize() for name, value in found.items()}, given.dense)
