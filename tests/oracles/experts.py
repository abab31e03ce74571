"""Mixtures of experts in slow float64: who is chosen with which weight, what an expert makes of a token, a cover."""

from itertools import combinations

import torch
from torch import Tensor


def routed(hidden: Tensor, router: Tensor, top: int) -> tuple[list[list[int]], list[list[float]]]:
    """For each token [tokens, in] the `top` experts and their weights: softmax over all, renormed over the chosen."""
    chosen, weights = [], []
    for token in hidden.double():
        scores = torch.softmax(router.double() @ token, 0)
        order = sorted(range(len(scores)), key=lambda e: -float(scores[e]))[:top]
        whole = sum(float(scores[e]) for e in order)
        chosen.append(order)
        weights.append([float(scores[e]) / whole for e in order])
    return chosen, weights


def expert(token: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """SwiGLU of one token [in]."""
    x = token.double()
    return down.double() @ (torch.nn.functional.silu(gate.double() @ x) * (up.double() @ x))


def divergence(p: Tensor, q: Tensor) -> float:
    """KL of two rows of logits, term by term."""
    a, b = torch.softmax(p.double(), 0), torch.softmax(q.double(), 0)
    return sum(float(x) * (float(x.log()) - float(y.log())) for x, y in zip(a, b, strict=True))


def fewest(have: list[int], pool: list[list[int]], least: int) -> int | None:
    """The size of the smallest set of sequences after which every expert has `least` tokens, by trying all."""
    for size in range(len(pool) + 1):
        for chosen in combinations(pool, size):
            if all(count + sum(row[e] for row in chosen) >= least for e, count in enumerate(have)):
                return size
    return None
