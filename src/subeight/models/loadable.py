"""`import subeight` makes checkpoints of our own method loadable by transformers: weights are dequantized as they are
read, and inputs are rounded in front of the linears whose inputs have a format.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig
from transformers.core_model_loading import ConversionOps
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import (
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from subeight.formats import Format, Scales, fake_quantize
from subeight.models.read.own import BASE_TYPE, METHOD, PREFIX, WEIGHT_PARTS, weight_of


class SubeightConfig(QuantizationConfigMixin):  # type: ignore[misc]  # transformers is untyped
    """What config.json says of a checkpoint of ours."""

    dequantize = True

    def __init__(self, version: int = 1, linears: dict[str, Any] | None = None, **_: Any) -> None:
        self.quant_method = METHOD
        self.version = version
        self.linears = linears or {}


class _Wrapped(PreTrainedConfig):  # type: ignore[misc]
    """The model type that our checkpoints have: it gives the config of what they are."""

    model_type = METHOD

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **options: Any) -> Any:
        content = {key: value for key, value in config_dict.items() if key != BASE_TYPE}
        content["model_type"] = config_dict[BASE_TYPE]
        return CONFIG_MAPPING[content["model_type"]].from_dict(content, **options)


class _Dequantize(ConversionOps):  # type: ignore[misc]
    """The parts of one linear to its weight, in the layout and dtype of the parameter that takes it."""

    def __init__(self, quantizer: SubeightQuantizer) -> None:
        self._linears = quantizer.quantization_config.linears

    def convert(
        self,
        input_dict: dict[str, Tensor | list[Tensor]],
        source_patterns: list[str],  # noqa: ARG002
        target_patterns: list[str],  # noqa: ARG002
        full_layer_name: str | None = None,
        model: nn.Module | None = None,
        **_: Any,
    ) -> dict[str, Tensor]:
        assert full_layer_name is not None
        assert model is not None
        parts = {name: value[0] if isinstance(value, list) else value for name, value in input_dict.items()}
        if "weight" in parts:
            return {full_layer_name: parts["weight"]}
        module_name = full_layer_name.removesuffix(".weight")
        said = self._linears[module_name]
        stored = {part: parts[PREFIX + part] for part in WEIGHT_PARTS if PREFIX + part in parts}
        parameter = model.get_parameter(full_layer_name)
        rows, width = said["shape"]
        weight = weight_of(Format.parse(said["weights"]), (rows, width), stored).dequantize(parameter.dtype)
        across = isinstance(model.get_submodule(module_name), Conv1D)
        return {full_layer_name: weight.T.contiguous() if across else weight}


class SubeightQuantizer(HfQuantizer):  # type: ignore[misc]
    """Loads what `export/own.py` wrote."""

    requires_calibration = True
    serialized_names = {"weight": ["weight", *(PREFIX + part for part in WEIGHT_PARTS)]}  # noqa: RUF012 - as its base

    def get_load_operations(self) -> dict[str, type[ConversionOps]]:
        """Dequantizing is the one way."""
        return {"dequantize": _Dequantize}

    def _process_model_before_weight_loading(self, model: nn.Module, **_: Any) -> None:
        """A place for each static scale of inputs."""
        for name, said in self.quantization_config.linears.items():
            if said.get("inputs") and Format.parse(said["inputs"]).per == "tensor":
                model.get_submodule(name).register_buffer("input_scale", torch.ones(1))

    def _process_model_after_weight_loading(self, model: nn.Module, **_: Any) -> nn.Module:
        for name, said in self.quantization_config.linears.items():
            if said.get("inputs"):
                hook = partial(_rounded, Format.parse(said["inputs"]))
                model.get_submodule(name).register_forward_pre_hook(hook)
        return model

    @property
    def is_trainable(self) -> bool:
        """Weights are plain once loaded; inputs that are rounded have no gradient."""
        return not any(said.get("inputs") for said in self.quantization_config.linears.values())

    def is_serializable(self) -> bool:
        """It would be saved as a dense model under this method's name."""
        return False


def _rounded(format: Format, module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    scale = getattr(module, "input_scale", None)
    static = None if scale is None else Scales(scale.float().reshape(1, 1))
    return (fake_quantize(given[0], format, static).to(given[0].dtype), *given[1:])


def register() -> None:
    """Tells transformers of the method `subeight`; again does nothing."""
    if METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantization_config(METHOD)(SubeightConfig)
        register_quantizer(METHOD)(SubeightQuantizer)
        AutoConfig.register(METHOD, _Wrapped)
