"""A model loaded whole, for what needs it at once: generation. Everything else streams blocks."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from subeight.models.block import Block
from subeight.models.model import Model


class Whole:
    """All blocks and the shell of a model in one transformers module, quantized linears dequantized."""

    def __init__(self, model: Model, dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.module: PreTrainedModel = copy.deepcopy(model.skeleton.model)
        names = list(model.skeleton.shell_parameters())
        tied = set(getattr(self.module, "all_tied_weights_keys", None) or {}) if model.skeleton.tied else set()
        for name in names:
            if name not in tied:
                owner, _, tail = name.rpartition(".")
                value = nn.Parameter(model.weights.read(name).to(self.device, dtype), requires_grad=False)
                self.module.get_submodule(owner)._parameters[tail] = value
        blocks = self.module.get_submodule(model.skeleton.blocks_name)
        self._blocks = [Block(model, index, dtype, self.device) for index in range(len(model.skeleton.blocks))]
        for index, block in enumerate(self._blocks):
            blocks[index] = block.module
        self.module.tie_weights()
        for name, buffer in list(self.module.named_buffers()):
            owner, _, tail = name.rpartition(".")
            self.module.get_submodule(owner)._buffers[tail] = buffer.to(self.device)

    @contextmanager
    def _rounding(self) -> Iterator[None]:
        with Block.rounding_of(self._blocks):
            yield

    def greedy(self, prompts: Sequence[Sequence[int]], tokens: int, stop: set[int]) -> list[list[int]]:
        """Up to `tokens` greedy tokens after each prompt, the stopping token left out; no sampling, no penalties."""
        return [self._answer(prompt, tokens, stop) for prompt in prompts]

    def _answer(self, prompt: Sequence[int], tokens: int, stop: set[int]) -> list[int]:
        ids = torch.tensor([list(prompt)], device=self.device)
        cache = None
        found: list[int] = []
        with torch.no_grad(), self._rounding():
            for _ in range(tokens):
                output = self.module(input_ids=ids, past_key_values=cache, use_cache=True)
                cache = output.past_key_values
                token = int(_first_maximum(output.logits[0, -1]))
                if token in stop:
                    break
                found.append(token)
                ids = torch.tensor([[token]], device=self.device)
        return found


def _first_maximum(logits: Tensor) -> Tensor:
    return logits.float().argmax()
