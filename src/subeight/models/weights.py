"""A model's weights by parameter name, one at a time, from whatever the checkpoint stores.

A checkpoint's names and shapes are not always the model's: transformers renames, and fuses per-expert matrices into
one 3-D parameter. Its own conversion tables say how; here they are run for single parameters, so that the whole model
is never in memory.
"""

import re
from collections.abc import Iterable, Sequence
from copy import deepcopy
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
    revert_weight_conversion,
)

from subeight.errors import ModelError
from subeight.models.fused import whole_parts
from subeight.models.read.gguf import GgufTensors
from subeight.models.read.safetensors import Stored


class Weights(Protocol):
    """Where a model's parameters come from."""

    def names(self) -> Iterable[str]:
        """The parameters that can be read."""

    def read(self, name: str) -> Tensor:
        """One parameter, in the checkpoint's dtype and the model's shape."""

    def dtype(self, name: str) -> torch.dtype:
        """The dtype that `read` will return."""

    def has(self, name: str) -> bool:
        """Whether a parameter or buffer of this name is stored."""


class StoredWeights:
    """Parameters out of safetensors, through transformers' renamings and conversions.

    Raises:
        ModelError: a parameter that the checkpoint lacks, a shape that is not the config's, a NaN or an Inf.
    """

    def __init__(self, tensors: dict[str, Stored], model: PreTrainedModel) -> None:
        self._tensors = tensors
        self._model = model
        self._shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        self._sources = self._match(tensors)
        text = model.config.get_text_config(decoder=True)
        self._apart = {
            name: parts
            for name, parts in whole_parts(model, text.model_type).items()
            if name not in self._sources and f"{parts[0].name}.weight" in tensors
        }
        self._tied = _tied_names(model)

    def _match(self, tensors: dict[str, Stored]) -> dict[str, tuple[WeightConverter | None, list]]:
        mapping = get_model_conversion_mapping(self._model)
        renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        by_pattern = {pattern: entry for entry in converters for pattern in entry.source_patterns}
        state = self._model.state_dict()
        prefix = self._model.base_model_prefix
        sources: dict[str, tuple[WeightConverter | None, list]] = {}
        for name in sorted(tensors, key=dot_natural_key):
            renamed, pattern = rename_source_key(name, renamings, converters, prefix, state)
            if renamed not in state and name in state:
                renamed, pattern = name, None
            if renamed not in state:
                continue
            converter = by_pattern[pattern] if pattern else None
            sources.setdefault(renamed, (converter, []))[1].append((name, pattern))
            for target in converter.target_patterns[1:] if converter else ():
                sources.setdefault(renamed.replace(converter.target_patterns[0], target), (converter, []))  # type: ignore[union-attr]
        return sources

    def names(self) -> Iterable[str]:
        return self._shapes.keys()

    def has(self, name: str) -> bool:
        return name in self._sources or name in self._apart

    def stored(self, name: str) -> list[Stored]:
        """The tensors of the checkpoint that make up the parameter `name`."""
        if name in self._apart:
            return [self._piece(f"{part.name}.weight") for part in self._apart[name]]
        if name.removesuffix("_bias") in self._apart and name not in self._sources:
            return [self._piece(f"{part.name}.bias") for part in self._apart[name.removesuffix("_bias")]]
        return [self._tensors[source] for source, _ in self._resolve(name)[1]]

    def dtype(self, name: str) -> torch.dtype:
        return self.stored(name)[0].dtype

    def _piece(self, name: str) -> Stored:
        if name not in self._tensors:
            raise ModelError(f"The checkpoint lacks the tensor {name} of an expert, though it has others of its kind.")
        return self._tensors[name]

    def _put_together(self, name: str) -> Tensor:
        """A fused parameter, or its bias, out of what is stored expert by expert."""
        base = name.removesuffix("_bias")
        stored = self.stored(name)
        value = torch.empty(self._shapes[name], dtype=stored[0].dtype)
        for part, tensor in zip(self._apart[base], stored, strict=True):
            target = part.of(value) if name == base else part.of_bias(value)
            piece = tensor.read()
            require_shape(f"{part.name}.weight", piece, tuple(target.shape))
            target.copy_(piece)
        return value

    def _resolve(self, name: str) -> tuple[WeightConverter | None, list]:
        found = self._sources.get(name)
        if found is None:
            for other in self._tied.get(name, ()):
                if other in self._sources:
                    return self._sources[other]
            raise ModelError(
                f"The checkpoint lacks the tensor {name}, which its config asks for; is a shard missing, or is the "
                "config another model's?"
            )
        return found

    def read(self, name: str) -> Tensor:
        if name not in self._sources and name.removesuffix("_bias") in self._apart:
            value = self._put_together(name)
        else:
            converter, sources = self._resolve(name)
            value = self._convert(name, converter, sources) if converter else self._tensors[sources[0][0]].read()
        require_shape(name, value, self._shapes[name])
        require_finite(name, value)
        return value

    def _convert(self, name: str, converter: WeightConverter, sources: list) -> Tensor:
        run = deepcopy(converter)
        for source, pattern in sources:
            run.add_tensor(name, source, pattern, self._tensors[source].read)
        made = run.convert(name, model=self._model, config=self._model.config)
        value = made[name]
        return value[0] if isinstance(value, list) else value


def _tied_names(model: PreTrainedModel) -> dict[str, list[str]]:
    """Parameters that share one tensor: each name with its fellows."""
    tied: dict[str, list[str]] = {}
    for name, other in (getattr(model, "all_tied_weights_keys", None) or {}).items():
        tied.setdefault(name, []).append(other)
        tied.setdefault(other, []).append(name)
    return tied


def require_shape(name: str, value: Tensor, expected: tuple[int, ...]) -> None:
    """Raises ModelError, naming the tensor, where its shape is not the one that the config asks for."""
    if tuple(value.shape) != expected:
        raise ModelError(
            f"Tensor {name} has the shape {list(value.shape)}, but the config asks for {list(expected)}; the "
            "checkpoint and the config do not belong together."
        )


def require_finite(name: str, value: Tensor) -> None:
    """Raises ModelError, naming the tensor, where a weight is NaN or Inf."""
    if value.is_floating_point() and value.element_size() > 1 and not bool(torch.isfinite(value.sum())):
        bad = int((~torch.isfinite(value)).sum())
        if bad:
            raise ModelError(
                f"Tensor {name} has {bad} values that are NaN or Inf; the model is damaged: download it again."
            )


def checkpoint_names(model: PreTrainedModel, parameters: Sequence[str]) -> dict[str, tuple[str, Tensor]]:
    """For each checkpoint tensor that `parameters` become when saved: its parameter, and which rows of it.

    Fused parameters [experts, rows, columns] are followed by numbering their rows and reversing transformers' own
    conversion: the value is a tensor of flat row numbers. Others give an empty tensor.
    """
    found: dict[str, tuple[str, Tensor]] = {}
    state = model.state_dict()
    for parameter in parameters:
        shape = state[parameter].shape
        if len(shape) == 3:
            rows = torch.arange(shape[0] * shape[1], dtype=torch.int64).view(shape[0], shape[1], 1)
            for name, value in revert_weight_conversion(model, {parameter: rows}).items():
                found[name] = (parameter, value)
        else:
            (name,) = revert_weight_conversion(model, {parameter: torch.empty(0)})
            found[name] = (parameter, torch.empty(0))
    return found


def saved_as(model: PreTrainedModel, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """These parameters under the names and in the shapes of a checkpoint of this family."""
    return dict(revert_weight_conversion(model, state))


def natural(name: str) -> list:
    """A sort key under which `layers.10` comes after `layers.9`."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


class GgufWeights:
    """Parameters out of a GGUF file, dequantized to float32.

    Raises:
        ModelError: a parameter that the file lacks, a shape that is not the config's, a NaN or an Inf.
    """

    def __init__(self, tensors: GgufTensors, model: PreTrainedModel) -> None:
        self._tensors = tensors
        self._shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}

    def names(self) -> Iterable[str]:
        return self._tensors.names()

    def nbytes(self, name: str) -> int | None:
        """Stored bytes of a parameter; None where it is not one tensor of the file (fused experts)."""
        return self._tensors.nbytes(name) if name in self._tensors.names() else None

    def dtype(self, name: str) -> torch.dtype:  # noqa: ARG002 - the protocol's; all are dequantized alike
        return torch.float32

    def has(self, name: str) -> bool:
        return name in self._tensors.names()

    def read(self, name: str) -> Tensor:
        value = self._tensors.read(name)
        require_shape(name, value, self._shapes[name])
        require_finite(name, value)
        return value
