"""SignRound of one linear in float64: the gradient through rounding by hand, steps against its sign.

y = x Q^T with Q = (code - zero) scale, code = round(w / scale + offset + zero) where it is not clipped. Straight
through means d code / d offset = 1, d code / d scale = -w / scale^2, d code / d zero = 1 inside of the levels and 0
outside.
"""

import numpy as np


class Linear:
    """The parameters of one weight [out, in] in groups along its rows; every range factor is one number a group."""

    def __init__(self, weight: np.ndarray, group: int, bits: int, affine: bool) -> None:
        rows, width = weight.shape
        self.w = weight.reshape(rows, width // group, group)
        self.first, self.last = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        self.affine = affine
        self.low, self.high = np.minimum(self.w.min(-1), 0.0), np.maximum(self.w.max(-1), 0.0)
        self.offset = np.zeros_like(self.w)
        self.below, self.above = np.ones_like(self.low), np.ones_like(self.high)

    def scale_and_zero(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Scale, rounded zero point, and where the zero point was not clipped."""
        low, high = self.low * self.below, self.high * self.above
        if not self.affine:
            return np.maximum(-low, high) / self.peak, np.zeros_like(low), np.zeros_like(low)
        scale = (high - low) / (self.last - self.first)
        raw = self.first - low / scale
        return scale, np.round(np.clip(raw, self.first, self.last)), ((raw >= self.first) & (raw <= self.last)) * 1.0

    @property
    def peak(self) -> float:
        return -self.first - 0.5

    def rounded(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Codes, the rounded weight [out, in], and where a code was not clipped."""
        scale, zero, _ = self.scale_and_zero()
        raw = self.w / scale[..., None] + self.offset + zero[..., None]
        inside = ((raw >= self.first) & (raw <= self.last)) * 1.0
        codes = np.round(np.clip(raw, self.first, self.last))
        weight = ((codes - zero[..., None]) * scale[..., None]).reshape(len(self.w), -1)
        return codes, weight, inside

    def step(self, x: np.ndarray, y: np.ndarray, size: float) -> None:
        """One step on the mean squared distance of x Q^T from y."""
        scale, zero, free = self.scale_and_zero()
        codes, weight, inside = self.rounded()
        d_weight = (2 / y.size * (x @ weight.T - y).T @ x).reshape(self.w.shape)
        d_code = d_weight * scale[..., None] * inside
        d_offset = d_code
        d_zero = (d_code - d_weight * scale[..., None]).sum(-1) * free
        through = d_weight * (codes - zero[..., None]) - d_code * self.w / scale[..., None] ** 2
        d_scale = through.sum(-1)
        low, high = self.low * self.below, self.high * self.above
        if self.affine:
            d_scale = d_scale + d_zero * low / scale**2
            d_high = d_scale / (self.last - self.first)
            d_low = -d_scale / (self.last - self.first) - d_zero / scale
        else:
            d_low = np.where(-low > high, -d_scale / self.peak, 0.0)
            d_high = np.where(-low < high, d_scale / self.peak, 0.0)
        self.offset = np.clip(self.offset - size * np.sign(d_offset), -0.5, 0.5)
        self.below = np.clip(self.below - size * np.sign(d_low * self.low), 0.0, 1.0)
        self.above = np.clip(self.above - size * np.sign(d_high * self.high), 0.0, 1.0)
