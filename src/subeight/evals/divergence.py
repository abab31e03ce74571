"""How far several candidates are from one baseline on the same tokens, exact also where they hardly differ.

With d = baseline's logits - candidate's, the divergence is log E[exp(-d)] + E[d] under the baseline's probabilities.
Written with expm1 and log1p it keeps its digits where d is small, as it is where one linear alone is quantized; the
difference of two entropies, which serves for whole models, would lose them. The baseline's softmax is computed once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from subeight.models.precision import exact_products
from subeight.models.shell import Head

_LOGITS = 64 << 20  # bytes of one buffer of logits
_LOGITS_GPU = 1 << 30  # the same where small products leave the device idle
_CACHED = 3 << 19  # bytes of the rows that are reduced together: they stay in the cores' caches
_NEAR = 0.5  # E[exp(-d)] - 1 below which both sums are small, and their difference keeps its digits


@dataclass(frozen=True)
class Divergence:
    """Per candidate and token, float64 [candidates, tokens]: KL(baseline || candidate), and how much the NLL rose."""

    kl: Tensor
    nll: Tensor


@torch.no_grad()
def divergences(reference: Tensor, candidates: Sequence[Tensor], heads: Sequence[Head], targets: Tensor) -> Divergence:
    """Scores `targets` [n] from final hidden states [n, width]: the baseline's and each candidate's.

    `heads` are the baseline's and then each candidate's; one that is the baseline's object is no work of its own to
    load. Identical logits give exactly 0; relative errors are below 1e-4 down to a KL of 1e-7 nats.
    """
    vocabulary = heads[0].vocabulary
    rows = _rows(vocabulary, reference.device)
    found = torch.zeros(2, len(candidates), len(targets), dtype=torch.float64)
    space = [torch.empty(min(rows, len(targets)), vocabulary, device=reference.device) for _ in range(2)]
    for start in range(0, len(targets), rows):
        stop = min(start + rows, len(targets))
        base, other = (buffer[: stop - start] for buffer in space)
        _logits(heads[0], reference[start:stop], base)
        aim = targets[start:stop].to(base.device)
        first = base.argmax(-1)
        chances = torch.softmax(base, -1)
        for number, hidden in enumerate(candidates):
            _logits(heads[number + 1], hidden[start:stop], other)
            found[:, number, start:stop] = _reduced(base, chances, other, first, aim).cpu()
    return Divergence(found[0], found[1])


def mean_divergence(
    reference: Tensor, candidate: Tensor, heads: tuple[Head, Head], *, slope: bool = False
) -> tuple[float, Tensor | None]:
    """Mean KL(baseline || candidate) in nats from final hidden states [..., width]; its gradient to the candidate's.

    `heads` are the baseline's and the candidate's. For tuning: plain float32 softmax, not the digits of `divergences`.
    """
    aims, given = reference.reshape(-1, reference.shape[-1]), candidate.reshape(-1, candidate.shape[-1])
    rows = _rows(heads[0].vocabulary, given.device)
    total, slopes = 0.0, []
    for start in range(0, len(aims), rows):
        part = slice(start, start + rows)
        with torch.set_grad_enabled(slope):
            x = given[part].detach().float().requires_grad_(slope)
            logits = heads[1](x)
        with torch.no_grad():
            difference = torch.log_softmax(heads[0](aims[part].to(given.device)), -1)
            chances, own = difference.exp(), torch.log_softmax(logits, -1)
            total += float(torch.linalg.vecdot(chances, difference.sub_(own)).sum(dtype=torch.float64))
        if slope:
            with exact_products(candidate.dtype):  # two softmaxes apart is the gradient to logits
                slopes.append(torch.autograd.grad(logits, x, own.exp_().sub_(chances))[0] / len(aims))
    return total / len(aims), torch.cat(slopes).reshape(candidate.shape) if slope else None


def _rows(vocabulary: int, device: torch.device) -> int:
    """How many tokens have their logits at once."""
    return max(1, (_LOGITS if device.type == "cpu" else _LOGITS_GPU) // (4 * vocabulary))


def _logits(head: Head, hidden: Tensor, out: Tensor) -> None:
    into = getattr(head, "into", None)
    if into is not None:
        into(hidden, out)
    else:
        out.copy_(head(hidden))


def _reduced(base: Tensor, chances: Tensor, other: Tensor, first: Tensor, targets: Tensor) -> Tensor:
    """[2, k] of one candidate's logits [k, vocabulary], which are overwritten."""
    step = max(1, _CACHED // (4 * base.shape[1])) if base.device.type == "cpu" else len(base)
    parts = []
    for start in range(0, len(base), step):
        at = slice(start, start + step)
        difference = torch.sub(base[at], other[at], out=other[at])
        # an offset common to all tokens changes nothing but would drown small differences
        difference -= difference.gather(1, first[at, None])
        missed = difference.gather(1, targets[at, None])[:, 0].double()
        drift = torch.linalg.vecdot(chances[at], difference).double()  # E[d]
        bent = torch.expm1(-difference)
        change = torch.linalg.vecdot(chances[at], bent).double()  # E[exp(-d)] - 1
        convex = torch.linalg.vecdot(chances[at], bent.add_(difference)).double()  # E[exp(-d) - 1 + d], no cancellation
        log = torch.log1p(change)
        if not bool(log.isfinite().all()):  # far apart: exp(-d) overflows in float32
            log = (chances[at].double().log() - difference.double()).logsumexp(-1)
        near = change < _NEAR
        kl = torch.where(near, log - change + convex, log + drift)
        parts.append(torch.stack([kl.clamp_min(0.0), missed + log]))
    return torch.cat(parts, 1)
