"""llm-compressor: GPTQ with static act-order and damping 0.01, AWQ, or plain rounding; with inputs in 8 bits
SmoothQuant, alone (`smooth`) or before GPTQ (`smooth_gptq`), kept as its own checkpoint. `--group 0`: one scale a row.

ENV/bin/python contest_llmcompressor.py MODEL_DIR IDS.pt OUT_DIR --method gptq --bits 3
"""

import time
from importlib.metadata import version

import torch

torch.Tensor.pin_memory = lambda self, *_, **__: self  # there is no accelerator to pin for

from compressed_tensors.quantization.lifecycle.forward import fake_quantize  # noqa: E402
from datasets import Dataset  # noqa: E402
from llmcompressor import oneshot  # noqa: E402
from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier  # noqa: E402
from llmcompressor.modifiers.transform import AWQModifier  # noqa: E402
from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier  # noqa: E402

from contest import arguments, keep, load, of_blocks  # noqa: E402

given = arguments("gptq", "awq", "rtn", "smooth", "smooth_gptq")
model = load(given)
weights = {"num_bits": given.bits, "type": "int", "symmetric": not given.asym}
weights |= {"strategy": "group", "group_size": given.group} if given.group else {"strategy": "channel"}
inputs = {"num_bits": given.inputs, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
scheme = {"targets": ["Linear"], "weights": weights, **({"input_activations": inputs} if given.inputs < 16 else {})}
groups = {"group_0": scheme}
base = {"config_groups": groups, "ignore": ["lm_head"]}
recipe = {
    "gptq": [GPTQModifier(**base, actorder="static", dampening_frac=0.01)],
    "awq": [AWQModifier(duo_scaling=True), QuantizationModifier(**base)],
    "rtn": [QuantizationModifier(**base)],
    "smooth": [SmoothQuantModifier(smoothing_strength=0.5), QuantizationModifier(**base)],
    "smooth_gptq": [SmoothQuantModifier(smoothing_strength=0.5), GPTQModifier(**base, dampening_frac=0.01)],
}[given.method]
data = Dataset.from_dict({"input_ids": given.ids.tolist(), "attention_mask": torch.ones_like(given.ids).tolist()})
oneshot(
    model=model,
    recipe=recipe,
    dataset=data,
    num_calibration_samples=len(given.ids),
    max_seq_length=given.ids.shape[1],
    shuffle_calibration_samples=False,
    batch_size=4,
)
seconds = time.perf_counter() - given.began
about = {"version": f"llm-compressor {version('llmcompressor')}"}
if given.inputs < 16:
    keep(given, {}, seconds, **about)
    model.save_pretrained(given.out, save_compressed=True)  # in place of the plain weights
    raise SystemExit
with torch.no_grad():
    for module in model.modules():
        scheme = getattr(module, "quantization_scheme", None)
        if scheme is not None and scheme.weights is not None:
            zero = getattr(module, "weight_zero_point", None)
            module.weight.data = fake_quantize(module.weight, module.weight_scale, zero, scheme.weights).float()
own = {name: value for name, value in of_blocks(model).items() if "scale" not in name and "zero" not in name}
keep(given, own, seconds, **about)
