"""SmoothQuant in float64: Xiao et al., https://arxiv.org/abs/2211.10438, equation 4, channel by channel."""

import numpy as np


def smooth(
    weights: list[np.ndarray], inputs: np.ndarray, alpha: float, channels: list[int], producers: int
) -> np.ndarray:
    """s_p = max|X_p|^alpha / max|W_p|^(1 - alpha) over all input channels that the producer's channel p feeds."""
    s = np.ones(producers)
    for p in range(producers):
        readers = [j for j, c in enumerate(channels) if c == p]
        x = max(abs(v) for j in readers for v in inputs[:, j])
        w = max(abs(v) for weight in weights for j in readers for v in weight[:, j])
        if x > 0 and w > 0:
            s[p] = x**alpha / w ** (1 - alpha)
    return s
