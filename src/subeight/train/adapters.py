"""LoRA adapters by PEFT on a packed base: made, saved so that plain PEFT loads them, and read back as what they add.

LoRA, https://arxiv.org/abs/2106.09685: y = x W^T + (alpha / rank) (x A^T) B^T, A [rank, in], B [out, rank].
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from subeight.errors import InputError, ModelError
from subeight.models.model import Model
from subeight.models.read.safetensors import index_file
from subeight.records.files import atomic_write
from subeight.train.qlora_base import Base
from subeight.train.qlora_frozen import FrozenLinear

WEIGHTS, CONFIG, MARK = "adapter_model.safetensors", "adapter_config.json", "subeight.json"
_PREFIX = "base_model.model."
_ALL = "all"


@dataclass(frozen=True)
class LoraShape:
    """How large an adapter is, how strongly it counts, and on which linears it sits.

    `targets` are names, parts of names (`q_proj`) or patterns (`*.mlp.*`); `all` is every linear of the blocks.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = (_ALL,)

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0 or not 0 <= self.dropout < 1:
            raise InputError(
                f"An adapter of rank {self.rank}, alpha {self.alpha:g} and dropout {self.dropout:g} cannot be; give a "
                "rank of 1 or more, an alpha above 0 and a dropout from 0 to below 1."
            )


def require_peft() -> None:
    """Raises InputError, with what to install, where PEFT is missing."""
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise InputError("Adapters are PEFT's, which is not installed; run pip install 'subeight[train]'.") from error


def chosen_targets(model: Model, targets: Sequence[str]) -> list[str]:
    """Full names of the modules that get adapters, in the order of the model; no weight is read for it.

    Raises:
        InputError: a target that names no linear of the blocks, or fused experts, which hold no module of their own.
    """
    views = [view for view in model.views() if view.info.kind in ("linear", "conv1d") and view.expert is None]
    modules = {view.parameter.removesuffix(".weight") for view in views}
    skeleton = model.skeleton.model
    names = [
        name for name, each in skeleton.named_modules() if name in modules and isinstance(each, nn.Linear | Conv1D)
    ]
    found: set[str] = set()
    for target in targets:
        hit = names if target == _ALL else [name for name in names if _fits(name, target)]
        if not hit:
            raise InputError(_unknown_target(target, names))
        found |= set(hit)
    return [name for name in names if name in found]


def _fits(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}") or fnmatch.fnmatchcase(name, target)


def _unknown_target(target: str, names: Sequence[str]) -> str:
    tails = list(dict.fromkeys(name.rpartition(".")[2] for name in names))
    near = get_close_matches(target, tails, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return (
        f"--targets was given {target!r}, which names no linear that an adapter can sit on{hint}; allowed are all, "
        f"{', '.join(tails)}, full names and patterns."
    )


def add_adapters(base: Base, names: Sequence[str], shape: LoraShape, source: str, seed: int) -> Any:
    """The base wrapped as a PeftModel with fresh adapters in float32, the only parameters that train.

    `source` is what plain PEFT will be told the base is. The same seed gives the same adapters.
    """
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import Linear

    config = LoraConfig(
        r=shape.rank,
        lora_alpha=shape.alpha,  # type: ignore[arg-type]  # scaled by it, whole or not
        lora_dropout=shape.dropout,
        target_modules=list(names),
        task_type="CAUSAL_LM",
        base_model_name_or_path=source,
        fan_in_fan_out=any(_is_conv1d(base.module.get_submodule(name)) for name in names),
    )
    # PEFT's own way for linears that it does not know: its plain LoRA layer around ours
    config._register_custom_module({FrozenLinear: Linear})
    base.module.name_or_path = source
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Unsupported layer type")
        model = get_peft_model(base.module, config, autocast_adapter_dtype=True)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def _is_conv1d(module: nn.Module) -> bool:
    return isinstance(module, Conv1D) or (isinstance(module, FrozenLinear) and module.conv1d)


def adapter_count(model: Model, names: Sequence[str], rank: int) -> int:
    """How many numbers adapters of this rank have on these modules."""
    shapes = {view.parameter.removesuffix(".weight"): view.info.shape for view in model.views() if view.expert is None}
    return sum(rank * sum(shapes[name]) for name in names)


def save_adapter(model: Any, directory: Path, origin: Mapping[str, str | None]) -> None:
    """Writes PEFT's two files, and beside them on which base the adapter was trained: see `require_fits`."""
    model.save_pretrained(directory, save_embedding_layers=False)
    (directory / "README.md").unlink(missing_ok=True)  # a model card with nothing on it
    atomic_write(directory / MARK, json.dumps(dict(origin)) + "\n")


def load_into(model: Any, directory: Path) -> None:
    """Puts stored adapter weights into a wrapped model."""
    from peft import set_peft_model_state_dict

    state = {name: stored.read() for name, stored in index_file(directory / WEIGHTS).items()}
    set_peft_model_state_dict(model, state)


@dataclass(frozen=True)
class Adapter:
    """What a stored adapter adds to each linear, by module name."""

    scaling: Mapping[str, float]
    factors: Mapping[str, tuple[Tensor, Tensor]]  # A [rank, in] and B [out, rank], float32
    nbytes: int  # of the stored weights
    fingerprint: str

    def delta(self, name: str) -> Float[Tensor, "out in"]:
        """The matrix that is added to the weight of a linear, float32."""
        a, b = self.factors[name]
        return (b @ a) * self.scaling[name]


def read_adapter(directory: Path) -> Adapter:
    """A LoRA adapter that PEFT stored.

    Raises:
        InputError: there is none, or it is of another kind than plain LoRA.
    """
    config = _config_of(directory)
    tensors = {name: stored.read().float() for name, stored in index_file(directory / WEIGHTS).items()}
    names = [name for name in tensors if name.endswith(".lora_A.weight")]
    factors = {}
    for name in names:
        other = name.replace(".lora_A.", ".lora_B.")
        factors[name.removeprefix(_PREFIX).removesuffix(".lora_A.weight")] = tensors[name], tensors.get(other)
    whole = all(b is not None for _, b in factors.values())
    if not factors or not whole or len(tensors) != 2 * len(factors):
        extra = next((name for name in tensors if ".lora_A." not in name and ".lora_B." not in name), "no lora_A")
        raise InputError(
            f"{directory} holds more or other than plain LoRA ({extra}); give an adapter of A and B alone."
        )
    rank, alpha = config["r"], config["lora_alpha"]
    power = 0.5 if config.get("use_rslora") else 1.0
    scaling = dict.fromkeys(factors, alpha / rank**power)
    digest = hashlib.sha256((directory / WEIGHTS).read_bytes()).hexdigest()[:16]
    return Adapter(scaling, factors, sum(t.numel() for t in tensors.values()) * 4, digest)  # type: ignore[arg-type]


def _config_of(directory: Path) -> dict[str, Any]:
    if not (directory / CONFIG).is_file() or not (directory / WEIGHTS).is_file():
        raise InputError(
            f"{directory} is no adapter (it lacks {CONFIG} or {WEIGHTS}); give a directory that PEFT or `train qlora` "
            "wrote, with its weights as safetensors."
        )
    config = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    odd = [key for key in ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save") if config.get(key)]
    if config.get("peft_type") != "LORA" or odd:
        raise InputError(
            f"{directory} is an adapter of the kind {config.get('peft_type')}{' with ' + odd[0] if odd else ''}; only "
            "plain LoRA of one rank can be trained further and merged here."
        )
    return config


def shape_of(directory: Path) -> LoraShape:
    """Rank and alpha of a stored adapter, its modules as targets."""
    config = _config_of(directory)
    names = tuple(read_adapter(directory).factors)
    return LoraShape(config["r"], config["lora_alpha"], config.get("lora_dropout", 0.0), names)


def require_fits(directory: Path, model: Model, origin: Mapping[str, str | None]) -> None:
    """Refuses an adapter of another base: by its mark where it has one, else by names and shapes.

    `origin` has the fingerprint of the `base`, or where that is to be made yet (None), what it is `made_of`.

    Raises:
        InputError: it was trained on another base, or has a linear that the model lacks or has in another shape.
    """
    mark = directory / MARK
    if mark.is_file():
        said = json.loads(mark.read_text(encoding="utf-8"))
        key = "made_of" if origin.get("base") is None else "base"
        if said.get(key) != origin[key]:
            raise InputError(
                f"The adapter in {directory} was trained on another base ({said.get(key)}, and {model.label} as it is "
                f"asked for here is {origin[key]}); give the model and recipe that it was trained with."
            )
    shapes = {view.parameter.removesuffix(".weight"): view.info.shape for view in model.views() if view.expert is None}
    for name, (a, b) in read_adapter(directory).factors.items():
        shape = shapes.get(name)
        if shape != (b.shape[0], a.shape[1]):
            has = "has none of that name" if shape is None else f"has it as {shape[0]} x {shape[1]}"
            raise ModelError(
                f"The adapter in {directory} is for {name} of {b.shape[0]} x {a.shape[1]}, but {model.label} {has}; "
                "give the base that it was trained on."
            )
