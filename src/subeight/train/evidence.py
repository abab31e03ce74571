"""How much of the codes a text can teach: where the loss wants a weight, against what the noise of its gradient hides.

A loss that is the divergence of likelihoods is as curved as its gradients are noisy (the information equality; Amari
1998): n tokens, whose gradients by a weight have the mean square F each, place that weight's optimum within
1 / sqrt(F n). All is in units of codes, and of each weight alone, as if the others stood still.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from subeight.train.shards import whole

PLACED = 0.25  # codes: within this a code is told from its neighbour


def evidence(slopes: Sequence[Tensor], tokens: int, learned: int) -> dict[str, float]:
    """What `learned` tokens can tell, by the gradients of the mean loss over `tokens` [out, groups, columns].

    `decided` is the share of codes that they place within a quarter of a code, `tokens_for_half` how many would decide
    half of the codes. Nothing is said of how much loss that is: a few weights of channels with huge activations hold
    most of the curvature, and training wins little of it.
    """
    # one gradient is a poor estimate of its own mean square, so the values of a group share theirs
    squares = torch.cat([whole(slope.double().square().mean(-1)).flatten() for slope in slopes]).cpu()
    counts = torch.cat([torch.full((slope.numel() // slope.shape[-1],), slope.shape[-1]).double() for slope in slopes])
    information = squares * tokens  # of one token
    weight = counts / counts.sum()
    order = information.argsort(descending=True)
    half = information[order][(weight[order].cumsum(0) < 0.5).sum()]
    return {
        "decided": float(weight[information * learned >= PLACED**-2].sum()),
        "tokens_for_half": float(PLACED**-2 / half) if half > 0 else float("inf"),
    }
