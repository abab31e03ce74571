"""Which experts a text reaches: tokens and routing weight of each, sequence by sequence, in one streamed pass."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from subeight.models.block import Block
from subeight.models.model import Model
from subeight.models.routing import Routing, experts_of, run_routed
from subeight.models.shell import Shell
from subeight.records.progress import progress


@dataclass(frozen=True)
class Routes:
    """What each sequence of a text gives each expert of a model; experts of all blocks in a row."""

    experts: tuple[str, ...]
    blocks: tuple[int, ...]  # of each expert
    counts: Int[Tensor, "sequences experts"]  # tokens
    weights: Float[Tensor, "sequences experts"]  # sums of routing weight, float64
    length: int  # tokens of a sequence

    @property
    def tokens(self) -> Int[Tensor, " experts"]:
        """Tokens of each expert over the whole text."""
        return self.counts.sum(0)

    def rows(self, before: int | None = None) -> list[dict[str, Any]]:
        """A row an expert, as records keep it; `before` counts the first so many sequences beside all of them."""
        tokens, weights = self.tokens.tolist(), self.weights.sum(0)
        whole = len(self.counts) * self.length
        of_block = {block: float(weights[self._in(block)].sum()) for block in set(self.blocks)}
        earlier = None if before is None else self.counts[:before].sum(0).tolist()
        return [
            {
                "expert": name,
                "block": block,
                "tokens": tokens[at],
                "share": tokens[at] / whole if whole else 0.0,
                "weight": float(weights[at]) / of_block[block] if of_block[block] else 0.0,
                **({} if earlier is None else {"tokens_before": earlier[at]}),
            }
            for at, (name, block) in enumerate(zip(self.experts, self.blocks, strict=True))
        ]

    def _in(self, block: int) -> Tensor:
        return torch.tensor([other == block for other in self.blocks])

    def followed_by(self, other: "Routes", chosen: list[int]) -> "Routes":
        """These sequences and then the chosen ones of another text."""
        return Routes(
            self.experts,
            self.blocks,
            torch.cat([self.counts, other.counts[chosen]]),
            torch.cat([self.weights, other.weights[chosen]]),
            self.length,
        )


def is_mixture(model: Model) -> bool:
    """Whether any linear of the model belongs to an expert that a router chooses."""
    return any(linear.kind == "expert" for linear in model.linears)


def routes(
    model: Model,
    ids: Int[Tensor, "sequences length"],
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    batch: int = 4,
    quiet: bool = False,
    what: str = "Watching the routers",
) -> Routes:
    """Runs a mixture of experts over a text, one block in memory at a time, and counts what reaches each expert."""
    shell = Shell(model, dtype, device)
    states = [shell.embed(part).cpu() for part in torch.split(ids, batch)]
    names: list[str] = []
    places: list[int] = []
    counts: list[Tensor] = []
    weights: list[Tensor] = []
    with progress(len(model.skeleton.blocks), what, "blocks", quiet=quiet) as advance:
        for index in range(len(model.skeleton.blocks)):
            block = Block(model, index, dtype, device)
            mine = experts_of(block.structure)
            parts = []
            for number, hidden in enumerate(states):
                output, routing = run_routed(block, hidden, shell.call(tuple(hidden.shape[:2]), index))
                states[number] = output.cpu()
                if routing is not None:
                    parts.append(_summed(routing, len(hidden), len(mine)))
            if parts:
                names += mine
                places += [index] * len(mine)
                counts.append(torch.cat([count for count, _ in parts]))
                weights.append(torch.cat([weight for _, weight in parts]))
            advance()
    return Routes(tuple(names), tuple(places), torch.cat(counts, 1), torch.cat(weights, 1), ids.shape[1])


def _summed(routing: Routing, sequences: int, experts: int) -> tuple[Tensor, Tensor]:
    """Tokens and routing weight of each sequence for each expert, [sequences, experts] both."""
    chosen = routing.chosen.reshape(sequences, -1).cpu()  # [sequences, length * k]
    weight = routing.weights.reshape(sequences, -1).double().cpu()
    counts = torch.zeros(sequences, experts, dtype=torch.long)
    counts.scatter_add_(1, chosen, torch.ones_like(chosen))
    return counts, torch.zeros(sequences, experts, dtype=torch.float64).scatter_add_(1, chosen, weight)
