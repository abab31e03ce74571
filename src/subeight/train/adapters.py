"""Low-rank adapters on a frozen base, by PEFT: which linears get one, how they are made, stored and read back.

LoRA (https://arxiv.org/abs/2106.09685). What is stored is PEFT's own format: `PeftModel.from_pretrained` puts it on the
plain full-precision model too. Beside it `subeight.json` says which base it was trained on.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from subeight.errors import InputError
from subeight.models.model import Model
from subeight.models.structure import LinearView
from subeight.records.files import atomic_write
from subeight.train.qlora_linear import FrozenLinear

WEIGHTS, CONFIG, ORIGIN = "adapter_model.safetensors", "adapter_config.json", "subeight.json"
_PREFIX = "base_model.model."
_TRAINABLE = ("linear", "conv1d")


@dataclass(frozen=True)
class LoraSettings:
    """`rank` and `alpha` (the product is scaled by alpha / rank), dropout of its input, and the `targets`: tails of
    names such as q_proj; None means every linear of the blocks but routers and experts."""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] | None = None

    def require(self) -> None:
        """Raises InputError for numbers that cannot be."""
        if self.rank < 1:
            raise InputError(f"--rank {self.rank} is no rank; give 1 or more, for instance 16.")
        if not self.alpha > 0:
            raise InputError(f"--alpha {self.alpha:g} would silence the adapters; give a number above 0, such as 32.")
        if not 0 <= self.dropout < 1:
            raise InputError(f"--dropout {self.dropout:g} is no share; give 0 up to, but not, 1.")


@dataclass(frozen=True)
class Delta:
    """What an adapter adds to one linear: scale * left @ right."""

    left: Float[Tensor, "out rank"]
    right: Float[Tensor, "rank in"]
    scale: float

    def dense(self) -> Float[Tensor, "out in"]:
        """The product in float32."""
        return self.left.float() @ self.right.float() * self.scale


def adapted_views(model: Model, settings: LoraSettings) -> list[LinearView]:
    """The linears that get an adapter, in order.

    Raises:
        InputError: a target that no linear of the blocks is called.
    """
    views = [view for view in model.views() if view.info.kind in _TRAINABLE]
    tails = {view.parameter.removesuffix(".weight").rpartition(".")[2] for view in views}
    if settings.targets is None:
        return views
    for target in settings.targets:
        if target not in tails:
            near = get_close_matches(target, tails, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise InputError(
                f"--targets names {target!r}{hint}, but the linears of {model.label} that can have an adapter are "
                f"{', '.join(sorted(tails))}; name some of these, or leave --targets out for all."
            )
    return [view for view in views if view.parameter.removesuffix(".weight").endswith(_ends(settings.targets))]


def _ends(targets: Sequence[str]) -> tuple[str, ...]:
    return tuple(f".{target}" for target in targets)


def attach(module: PreTrainedModel, views: Sequence[LinearView], settings: LoraSettings, seed: int) -> Any:
    """A PeftModel of the module with fresh float32 adapters on these linears; everything else is frozen.

    Raises:
        InputError: PEFT is not installed.
    """
    peft = require_peft()
    owners = [view.parameter.removesuffix(".weight") for view in views]
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=sorted({owner.rpartition(".")[2] for owner in owners}),
        exclude_modules=_excluded(module, owners),
        fan_in_fan_out=any(view.transposed for view in views),
        task_type="CAUSAL_LM",
    )
    config._register_custom_module({FrozenLinear: peft.tuners.lora.Linear})
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it does not know our linears
        torch.manual_seed(seed)
        made = peft.get_peft_model(module, config)
    for name, parameter in made.named_parameters():
        parameter.requires_grad_(".lora_" in name)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return made


def _excluded(module: nn.Module, owners: Sequence[str]) -> list[str] | None:
    """Modules whose names end as the targets do, but which get no adapter."""
    tails = {owner.rpartition(".")[2] for owner in owners}
    found = [
        name
        for name, part in module.named_modules()
        if name.rpartition(".")[2] in tails and name not in owners and isinstance(part, nn.Linear | FrozenLinear)
    ]
    return found or None


def save(adapted: Any, directory: Path, origin: Mapping[str, str | None]) -> None:
    """Writes the adapters in PEFT's format; `origin` are the fingerprints of what they were trained on."""
    adapted.save_pretrained(directory, save_embedding_layers=False)
    (directory / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    _name_base(directory, origin)
    atomic_write(directory / ORIGIN, json.dumps(dict(origin), indent=1) + "\n")


def _name_base(directory: Path, origin: Mapping[str, str | None]) -> None:
    """The base's name in PEFT's config, without a date or a path of this machine."""
    path = directory / CONFIG
    content = json.loads(path.read_text(encoding="utf-8"))
    content["base_model_name_or_path"] = origin.get("model")
    content["target_modules"] = sorted(content["target_modules"])
    atomic_write(path, json.dumps(content, indent=2, sort_keys=True) + "\n")


def load(adapted: Any, directory: Path, origin: Mapping[str, str | None]) -> None:
    """Puts stored adapters in the place of the fresh ones.

    Raises:
        InputError: the directory has none, or they were made for another base, rank or other targets.
    """
    values = stored(directory)
    said = directory / ORIGIN
    if said.is_file():
        theirs = json.loads(said.read_text(encoding="utf-8"))
        for part in ("baseline", "base"):
            if theirs.get(part) != origin.get(part):
                what = "another model" if part == "baseline" else "another quantization of the model"
                raise InputError(
                    f"The adapter in {directory} was trained on {what} ({theirs.get(part)}, here {origin.get(part)}); "
                    "give the model and the recipe that it was trained on, or leave --adapter out."
                )
    own = {name.replace(".default.", "."): value for name, value in adapted.named_parameters() if ".lora_" in name}
    wrong = sorted(own.keys() ^ values.keys()) or [n for n in own if own[n].shape != values[n].shape]
    if wrong:
        raise InputError(
            f"The adapter in {directory} does not fit: {len(wrong)} of its tensors are missing here or of another "
            f"shape, first {wrong[0]}; give the --rank and --targets that it was made with."
        )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(values[name])


def stored(directory: Path) -> dict[str, Tensor]:
    """The tensors of stored adapters by PEFT's names; raises InputError where there are none."""
    if not (directory / WEIGHTS).is_file() or not (directory / CONFIG).is_file():
        raise InputError(
            f"{directory} holds no adapter ({CONFIG} and {WEIGHTS} are looked for); give a directory that PEFT or "
            "`train qlora` wrote."
        )
    return load_file(directory / WEIGHTS)


def deltas(directory: Path) -> dict[str, Delta]:
    """What stored adapters add, by the name of the parameter that they are added to."""
    values = stored(directory)
    config = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    scale = config["lora_alpha"] / config["r"]
    found = {}
    for name, right in values.items():
        base, mark, _ = name.removeprefix(_PREFIX).partition(".lora_A.")
        if mark:
            left = values[f"{_PREFIX}{base}.lora_B.weight"]
            found[f"{base}.weight"] = Delta(left, right, scale)
    return found


def nbytes(directory: Path) -> int:
    """Bytes of the stored adapters."""
    return sum(value.nbytes for value in stored(directory).values())


def require_peft() -> Any:
    """The package; raises InputError with what to install."""
    try:
        import peft
    except ImportError as error:
        raise InputError(
            "Adapters are PEFT's, which is not installed; run `pip install 'subeight[train]'` and repeat."
        ) from error
    return peft
