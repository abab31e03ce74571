"""AutoAWQ's gemm layout: plain min-max rounding of the blocks' linears, packed as AutoAWQ would. That package is not
maintained and does not start beside transformers 5, so its layout is written here from its description.

ENV/bin/python foreign_awq.py MODEL_DIR OUT_DIR [DENSE] [--group 32]
"""

import json

import torch
from safetensors.torch import save_file

from foreign import arguments, keep_dense, keep_tokenizer, load

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the column that each nibble of a word holds, from the lowest


def packed(values: torch.Tensor) -> torch.Tensor:
    """Codes [rows, columns] of 4 bits as int32 [rows, columns / 8]."""
    words = torch.zeros(values.shape[0], values.shape[1] // 8, dtype=torch.int32)
    for place, column in enumerate(ORDER):
        words |= values[:, column::8].to(torch.int32) << (4 * place)
    return words


given = arguments("gemm")
model = load(given.model)
tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
if model.config.tie_word_embeddings:
    tensors.pop("lm_head.weight", None)
dense = {}
for name, module in model.named_modules():
    if not isinstance(module, torch.nn.Linear) or name == "lm_head":
        continue
    weight = tensors.pop(f"{name}.weight").float()
    groups = weight.unflatten(1, (-1, given.group))  # [out, groups, group]
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    scales = ((high - low).clamp(min=1e-5) / 15).half()  # [out, groups]
    zeros = (-low / scales.float()).round().clamp(0, 15)
    codes = (groups / scales.float()[..., None]).round().add(zeros[..., None]).clamp(0, 15)
    dense[name] = ((codes - zeros[..., None]) * scales.float()[..., None]).flatten(1)
    tensors[f"{name}.qweight"] = packed(codes.flatten(1).T)
    tensors[f"{name}.qzeros"] = packed(zeros.T)
    tensors[f"{name}.scales"] = scales.T.contiguous()
config = {"bits": 4, "group_size": given.group, "zero_point": True, "version": "gemm", "quant_method": "awq"}
given.out.mkdir(parents=True, exist_ok=True)
save_file(tensors, given.out / "model.safetensors", metadata={"format": "pt"})
content = {**model.config.to_dict(), "quantization_config": {**config, "modules_to_not_convert": ["lm_head"]}}
(given.out / "config.json").write_text(json.dumps(content, indent=1, default=str), encoding="utf-8")
keep_tokenizer(given.model, given.out)
keep_dense(dense, given.dense)
