"""The states in front of every block of one model, on the way to where something is changed."""

from collections.abc import Iterable

from torch import Tensor

from subeight.evals.passes import Computing

SHARE = 8  # of the room for blocks and states, for one model's trail: two models, and what is computed from them


class Trail:
    """States in front of block after block, batch by batch [rows, length, width]; on disk where memory has no room."""

    def __init__(self, computing: Computing) -> None:
        self._shelf = computing.shelf(SHARE)
        self._starts = [0]

    def append(self, states: Iterable[Tensor]) -> None:
        """Adds the states in front of the next block."""
        self._shelf.extend(states)
        self._starts.append(len(self._shelf))

    def __getitem__(self, index: int) -> list[Tensor]:
        """The states in front of block `index`."""
        return self._shelf[self._starts[index] : self._starts[index + 1]]

    def __len__(self) -> int:
        return len(self._starts) - 1
