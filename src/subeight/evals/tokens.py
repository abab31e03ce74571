"""What one candidate does to every scored token: its loss, its distance from the baseline, its first choice.

Both models hand over their final normed hidden states, which are small enough to be kept on disk, and the
head that turns them into logits; vocabulary-wide tensors exist only for a few hundred tokens at a time. The
divergence is KL(baseline || candidate) over the whole vocabulary, never over a top-k
(https://arxiv.org/abs/2407.09141 shows what accuracy alone hides).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from subeight.errors import InputError

Head = Callable[[Tensor], Tensor]
"""Hidden states [k, width] to fresh float32 logits [k, vocabulary]. A head that also has `into(hidden, out)`,
which writes the same logits into `out`, is asked that way: it spares fresh pages for every chunk, a third of
the whole time on a CPU. Its `vocabulary`, where it says that, sizes the first chunk too."""

_BUFFER_BYTES = 64 << 20  # one kept buffer of logits: fewer rows make a matmul that mostly reads its weights
_FRESH_BYTES = 24 << 20  # logits that a plain head allocates anew: larger ones go back to the system every time
_CACHE_BYTES = 3 << 19  # the rows reduced together: two such blocks and their difference stay in the cores' L2


@dataclass(frozen=True)
class TokenOutcomes:
    """One entry per scored token, in the order of `targets`; losses and divergences in nats, float64."""

    nll_reference: Tensor
    nll_candidate: Tensor
    kl: Tensor
    agree: Tensor  # bool: the baseline's most likely token is a most likely token of the candidate

    def __len__(self) -> int:
        return len(self.kl)

    @staticmethod
    def joined(parts: list[TokenOutcomes]) -> TokenOutcomes:
        """One after another, for an evaluation that goes batch by batch."""
        return TokenOutcomes(
            torch.cat([p.nll_reference for p in parts]),
            torch.cat([p.nll_candidate for p in parts]),
            torch.cat([p.kl for p in parts]),
            torch.cat([p.agree for p in parts]),
        )


@dataclass
class Workspace:
    """Buffers that calls of `token_outcomes` share; fresh pages would cost as much as the softmaxes."""

    vocabulary: int | None = None  # learned from the first logits where it is not given
    buffers: dict[tuple[str, torch.device], Tensor] = field(default_factory=dict)

    def rows(self, name: str, rows: int, width: int, device: torch.device) -> Tensor:
        """A float32 [rows, width] view, of undefined content, that is valid until the same name is asked for
        again.
        """
        held = self.buffers.get((name, device))
        if held is None or held.numel() < rows * width:
            held = torch.empty(rows * width, dtype=torch.float32, device=device)
            self.buffers[(name, device)] = held
        return held[: rows * width].view(rows, width)


@torch.no_grad()
def token_outcomes(
    reference_hidden: Tensor,
    candidate_hidden: Tensor,
    reference_head: Head,
    candidate_head: Head,
    targets: Tensor,
    *,
    workspace: Workspace | None = None,
) -> TokenOutcomes:
    """Scores `targets[i]` from row i of both hidden states ([n, width], bfloat16 or float32).

    Exact for the float32 logits given: losses to 1e-7 relative, divergences to 1e-6 relative or 1e-6 nats,
    whichever is larger; identical logits give exactly 0. Pass one `workspace` to all calls of an evaluation
    that goes batch by batch.
    """
    count = len(targets)
    if len(reference_hidden) != count or len(candidate_hidden) != count:
        raise InputError(
            f"{count} targets were given with {len(reference_hidden)} hidden states of the baseline and "
            f"{len(candidate_hidden)} of the candidate; give one row of each per target"
        )
    if count == 0:
        raise InputError("no tokens to score were given; at least one target is needed")
    space = workspace or Workspace(getattr(reference_head, "vocabulary", None))
    kept = hasattr(reference_head, "into") and hasattr(candidate_head, "into")
    parts: list[TokenOutcomes] = []
    start = 0
    while start < count:
        stop = start + _rows(count - start, space.vocabulary, kept)
        reference = _logits(reference_head, reference_hidden[start:stop], "reference", space)
        candidate = _logits(candidate_head, candidate_hidden[start:stop], "candidate", space)
        parts.append(_reduce(reference, candidate, targets[start:stop].to(reference.device), space))
        start = stop
    return TokenOutcomes.joined(parts)


def _rows(left: int, vocabulary: int | None, kept: bool) -> int:
    """Rows of the next chunk: even parts of what is left, or a first look while the vocabulary is unknown."""
    if vocabulary is None:
        return min(left, 64)
    most = max(64, (_BUFFER_BYTES if kept else _FRESH_BYTES) // (4 * vocabulary))
    chunks = -(-left // most)
    return -(-left // chunks)


def _logits(head: Head, hidden: Tensor, name: str, space: Workspace) -> Tensor:
    """Float32 logits that may be overwritten."""
    into = getattr(head, "into", None)
    if into is not None and space.vocabulary is not None:
        out = space.rows(name, len(hidden), space.vocabulary, hidden.device)
        into(hidden, out)
        return out
    logits = head(hidden)
    if space.vocabulary is None:
        space.vocabulary = logits.shape[-1]
    if logits.shape != (len(hidden), space.vocabulary):
        raise InputError(
            f"the {name}'s head returned logits of shape {tuple(logits.shape)} where "
            f"{(len(hidden), space.vocabulary)} was expected; both models must share one vocabulary"
        )
    own = logits.untyped_storage().data_ptr() != hidden.untyped_storage().data_ptr()
    return logits.float() if own else logits.float().clone()


def _reduce(reference: Tensor, candidate: Tensor, targets: Tensor, space: Workspace) -> TokenOutcomes:
    """Reduces both [k, vocabulary] blocks, which are overwritten, a few rows at a time."""
    count, vocabulary = reference.shape
    rows = min(count, max(1, _CACHE_BYTES // (4 * vocabulary))) if reference.device.type == "cpu" else count
    scratch = space.rows("difference", rows, vocabulary, reference.device)
    parts = []
    for start in range(0, count, rows):
        stop = min(count, start + rows)
        parts.append(
            _outcomes(
                reference[start:stop],
                candidate[start:stop],
                targets[start:stop, None],
                scratch[: stop - start],
            )
        )
    return TokenOutcomes.joined(parts)


def _outcomes(reference: Tensor, candidate: Tensor, targets: Tensor, difference: Tensor) -> TokenOutcomes:
    """The arithmetic, in place. Sums over the vocabulary are float32; what cancels is done in float64."""
    top_reference, first = reference.max(dim=-1, keepdim=True)
    top_candidate = candidate.amax(dim=-1, keepdim=True)
    agree = candidate.gather(1, first) == top_candidate
    target_reference = reference.gather(1, targets).double()
    target_candidate = candidate.gather(1, targets).double()
    torch.sub(reference, candidate, out=difference)
    # an offset common to all tokens changes nothing but would drown small differences
    offset = difference.gather(1, first)
    difference.sub_(offset)
    sum_reference = reference.sub_(top_reference).exp_().sum(dim=-1, keepdim=True).double()
    sum_candidate = candidate.sub_(top_candidate).exp_().sum(dim=-1, keepdim=True).double()
    drift = reference.mul_(difference).sum(dim=-1, keepdim=True).double() / sum_reference
    normal_reference = sum_reference.log() + top_reference.double()
    normal_candidate = sum_candidate.log() + top_candidate.double()
    kl = drift - (normal_reference - normal_candidate - offset.double())
    return TokenOutcomes(
        nll_reference=(normal_reference - target_reference).squeeze(1),
        nll_candidate=(normal_candidate - target_candidate).squeeze(1),
        kl=kl.clamp_min(0.0).squeeze(1),
        agree=agree.squeeze(1),
    )
