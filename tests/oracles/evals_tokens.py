"""Loss, divergence and agreement by their definitions: float64, one token at a time, all logits at once."""

import math

from torch import Tensor


def nll(logits: Tensor, target: int) -> float:
    row = logits.double().tolist()
    top = max(row)
    return math.log(math.fsum(math.exp(x - top) for x in row)) + top - row[target]


def kl(reference: Tensor, candidate: Tensor) -> float:
    """sum p log(p / q), with exactly rounded sums."""
    log_p, log_q = _log_probabilities(reference), _log_probabilities(candidate)
    return math.fsum(math.exp(p) * (p - q) for p, q in zip(log_p, log_q, strict=True))


def agree(reference: Tensor, candidate: Tensor) -> bool:
    return int(reference.argmax()) == int(candidate.argmax())


def _log_probabilities(logits: Tensor) -> list[float]:
    row = logits.double().tolist()
    top = max(row)
    normal = math.log(math.fsum(math.exp(x - top) for x in row)) + top
    return [x - normal for x in row]
