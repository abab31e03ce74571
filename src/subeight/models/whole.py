"""A model loaded whole, for generation where it fits. Everything else streams blocks."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from subeight.models.block import Block
from subeight.models.model import Model
from subeight.models.shell import Shell


class Whole:
    """All blocks and the shell of a model in one transformers module, quantized linears dequantized."""

    def __init__(self, model: Model, dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
        blocks = [Block(model, index, dtype, device) for index in range(len(model.skeleton.blocks))]
        self._assemble(model, blocks, Shell(model, dtype, device))

    @classmethod
    def of(cls, model: Model, blocks: Sequence[Block], shell: Shell) -> "Whole":
        """A model put together from blocks and a shell that are loaded already, with which it shares its weights."""
        self = cls.__new__(cls)
        self._assemble(model, blocks, shell)
        return self

    def _assemble(self, model: Model, blocks: Sequence[Block], shell: Shell) -> None:
        self.device = shell.device
        self.module: PreTrainedModel = copy.deepcopy(model.skeleton.model)
        for name in model.skeleton.shell_parameters():
            owner, _, tail = name.rpartition(".")
            value = nn.Parameter(shell.parameter(name).detach(), requires_grad=False)
            self.module.get_submodule(owner)._parameters[tail] = value
        self._blocks = list(blocks)
        listed = self.module.get_submodule(model.skeleton.blocks_name)
        for index, block in enumerate(self._blocks):
            listed[index] = block.module
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

    def sample(self, ids: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
        """Endless tokens [batch, 1] after `ids` [batch, length], drawn at temperature 1."""
        cache = None
        step = ids.to(self.device)
        while True:
            with torch.no_grad(), self._rounding():
                output = self.module(input_ids=step, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            chances = torch.softmax(output.logits[:, -1].float(), -1).cpu()
            token = torch.multinomial(chances, 1, generator=generator)
            yield token
            step = token.to(self.device)

    def _answer(self, prompt: Sequence[int], tokens: int, stop: set[int]) -> list[int]:
        ids = torch.tensor([list(prompt)], device=self.device)
        cache = None
        found: list[int] = []
        with torch.no_grad(), self._rounding():
            for _ in range(tokens):
                output = self.module(input_ids=ids, past_key_values=cache, use_cache=True)
                cache = output.past_key_values
                token = first_maximum(output.logits[0, -1])
                if token in stop:
                    break
                found.append(token)
                ids = torch.tensor([[token]], device=self.device)
        return found


def first_maximum(logits: Tensor) -> int:
    """The likeliest token."""
    return int(logits.float().argmax())
