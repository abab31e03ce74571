"""A model without its weights: the transformers module on the meta device, and where its decoder blocks are.

Raises ModelError where the blocks cannot be found; nothing is guessed.
"""

import copy
import textwrap
from functools import cached_property

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from subeight.errors import ModelError


def one_line(error: Exception) -> str:
    """The first sentence of what another library says, short enough to stand inside one of ours."""
    first = str(error).strip().split("\n")[0].split(". ")[0]
    return textwrap.shorten(first.rstrip("."), 200, placeholder=" ...")


class Skeleton:
    """The module tree of a causal LM, parameters on meta, buffers real."""

    def __init__(self, config: PreTrainedConfig, *, trust_remote_code: bool = False) -> None:
        self.config = copy.deepcopy(config)
        if hasattr(self.config, "quantization_config"):
            del self.config.quantization_config
        try:
            with init_empty_weights(include_buffers=False):
                self.model: PreTrainedModel = AutoModelForCausalLM.from_config(
                    self.config, dtype=torch.float32, trust_remote_code=trust_remote_code
                )
        except (ValueError, KeyError, AttributeError, RuntimeError) as error:
            raise ModelError(f"transformers cannot build a causal LM from this config ({one_line(error)}).") from error
        # Fused experts have grouped kernels; only the plain loop shows which tokens each expert reads.
        self.model.config._experts_implementation = "eager"
        self.model.eval().requires_grad_(False)
        self.blocks_name = self._find_blocks()

    def _find_blocks(self) -> str:
        count = self.config.get_text_config(decoder=True).num_hidden_layers
        lists = {
            name: module
            for name, module in self.model.named_modules()
            if isinstance(module, nn.ModuleList) and len(module) and sum(p.numel() for p in module.parameters())
        }
        fitting = [name for name, module in lists.items() if len(module) == count and "." in name]
        outer = [name for name in fitting if not any(name.startswith(f"{other}.") for other in fitting)]
        if len(outer) != 1:
            seen = ", ".join(f"{name} ({len(module)})" for name, module in lists.items()) or "none"
            raise ModelError(
                f"{type(self.model).__name__} has no single list of {count} decoder blocks (lists found: {seen}); "
                "only decoders that are a list of blocks can be quantized."
            )
        return outer[0]

    @property
    def blocks(self) -> nn.ModuleList:
        return self.model.get_submodule(self.blocks_name)  # type: ignore[return-value]

    @cached_property
    def trunk_name(self) -> str:
        """The module that owns the blocks and runs them one after the other."""
        return self.blocks_name.rpartition(".")[0]

    @property
    def trunk(self) -> nn.Module:
        return self.model.get_submodule(self.trunk_name)

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding matrix."""
        return bool(self.config.get_text_config(decoder=True).tie_word_embeddings)

    @cached_property
    def tied_names(self) -> frozenset[str]:
        """Parameters that repeat another one and are stored once (the head of tied embeddings)."""
        return frozenset(getattr(self.model, "all_tied_weights_keys", None) or {}) if self.tied else frozenset()

    @property
    def width(self) -> int:
        """Channels of the residual stream."""
        return int(self.config.get_text_config(decoder=True).hidden_size)

    @property
    def head_dim(self) -> int | None:
        """Width of one attention head; None where the config does not say."""
        text = self.config.get_text_config(decoder=True)
        heads = getattr(text, "num_attention_heads", None)
        return getattr(text, "head_dim", None) or (self.width // heads if heads else None)

    def block_name(self, index: int) -> str:
        return f"{self.blocks_name}.{index}"

    def block_parameters(self, index: int) -> list[str]:
        """Full names of the parameters of one block."""
        prefix = self.block_name(index)
        return [f"{prefix}.{name}" for name, _ in self.blocks[index].named_parameters()]

    def block_buffers(self, index: int) -> list[str]:
        """Full names of the buffers of one block that its checkpoint stores (the correction of a router's scores)."""
        prefix, block = self.block_name(index), self.blocks[index]
        parameters = {name for name, _ in block.named_parameters()}
        return [f"{prefix}.{name}" for name in block.state_dict() if name not in parameters]

    def shell_parameters(self) -> list[str]:
        """Full names of all parameters outside the blocks (embeddings, last norm, head)."""
        prefix = f"{self.blocks_name}."
        return [name for name, _ in self.model.named_parameters() if not name.startswith(prefix)]

    def signature(self, index: int) -> tuple:
        """What makes two blocks alike: their parameters' names and shapes."""
        named = self.blocks[index].named_parameters()
        return (type(self.blocks[index]).__name__, *((name, tuple(p.shape)) for name, p in named))
