"""llm-compressor: GPTQ or plain rounding as a compressed-tensors checkpoint of integers, or nvfp4 and mxfp4 weights.

ENV/bin/python foreign_llmcompressor.py MODEL_DIR OUT_DIR [DENSE] --method gptq|rtn|nvfp4|mxfp4
"""

import torch

torch.Tensor.pin_memory = lambda self, *_, **__: self  # there is no accelerator to pin for

from datasets import Dataset  # noqa: E402
from llmcompressor import oneshot  # noqa: E402
from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

from foreign import LENGTH, ROWS, arguments, keep_dense, keep_tokenizer, load, rows  # noqa: E402

given = arguments("gptq", "rtn", "nvfp4", "mxfp4")
weights = {
    "num_bits": given.bits,
    "type": "int",
    "symmetric": not given.asym,
    "strategy": "group",
    "group_size": given.group,
}
groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
if given.method in ("nvfp4", "mxfp4"):
    modifier = QuantizationModifier(targets="Linear", scheme=f"{given.method.upper()}A16", ignore=["lm_head"])
elif given.method == "rtn":
    modifier = QuantizationModifier(config_groups=groups, ignore=["lm_head"])
else:
    modifier = GPTQModifier(config_groups=groups, ignore=["lm_head"], actorder="static", dampening_frac=0.01)
ids = rows(given.model)
model = load(given.model)
data = Dataset.from_dict({"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist()})
oneshot(
    model=model,
    recipe=[modifier],
    dataset=data,
    num_calibration_samples=ROWS,
    max_seq_length=LENGTH,
    shuffle_calibration_samples=False,
    batch_size=4,
)
model.save_pretrained(given.out, save_compressed=True)
keep_tokenizer(given.model, given.out)
dtype = torch.bfloat16 if given.method in ("nvfp4", "mxfp4") else torch.float32  # fp4 is unpacked as bf16
loaded = AutoModelForCausalLM.from_pretrained(given.out, dtype=dtype)
loaded(input_ids=ids[:1])  # it is dense from its first forward pass on
names = [name for name, module in loaded.named_modules() if getattr(module, "quantization_scheme", None) is not None]
keep_dense({name: loaded.get_submodule(name).weight for name in names}, given.dense)
