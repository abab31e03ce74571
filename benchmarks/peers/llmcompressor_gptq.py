"""llm-compressor's GPTQ: int4, symmetric, groups of 64, static act-order, damping 0.01.

ENV/bin/python llmcompressor_gptq.py MODEL IDS.pt OUT THREADS
"""

import json
import sys
import time

import torch

torch.Tensor.pin_memory = lambda self, *_, **__: self  # there is no accelerator to pin for

from compressed_tensors.quantization.lifecycle.forward import fake_quantize  # noqa: E402
from datasets import Dataset  # noqa: E402
from llmcompressor import oneshot  # noqa: E402
from llmcompressor.modifiers.quantization import GPTQModifier  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

model_path, ids_path, out, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
ids = torch.load(ids_path)
data = Dataset.from_dict({"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist()})
weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 64}
groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
began = time.perf_counter()
model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
oneshot(
    model=model,
    recipe=[GPTQModifier(config_groups=groups, ignore=["lm_head"], actorder="static", dampening_frac=0.01)],
    dataset=data,
    num_calibration_samples=len(ids),
    max_seq_length=ids.shape[1],
    shuffle_calibration_samples=False,
    batch_size=4,
)
seconds = time.perf_counter() - began
with torch.no_grad():
    for module in model.modules():
        scheme = getattr(module, "quantization_scheme", None)
        if scheme is not None and scheme.weights is not None:
            zero = getattr(module, "weight_zero_point", None)
            module.weight.data = fake_quantize(module.weight, module.weight_scale, zero, scheme.weights).float()
state = {name: value for name, value in model.state_dict().items() if "scale" not in name and "zero" not in name}
plain = AutoModelForCausalLM.from_config(model.config, dtype=torch.float32)
plain.load_state_dict(state, strict=False)
plain.tie_weights()
if hasattr(plain.config, "quantization_config"):
    del plain.config.quantization_config
plain.save_pretrained(out)
AutoTokenizer.from_pretrained(model_path).save_pretrained(out)
print(json.dumps({"seconds": seconds}))
