"""Products with a quantized weight, in float64, value by value."""

import numpy as np


def dequantized(codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray | None, group: int) -> np.ndarray:
    """codes [out, in] (or what a codebook says of them), one scale and zero point per row and group."""
    found = np.zeros(codes.shape)
    for row in range(codes.shape[0]):
        for column in range(codes.shape[1]):
            at = column // group
            zero = 0.0 if zeros is None else float(zeros[row, at])
            found[row, column] = (float(codes[row, column]) - zero) * float(scales[row, at])
    return found


def rounded(x: np.ndarray, step: int) -> np.ndarray:
    """x [rows, in] in int8, one scale per `step` columns, as numbers again: float32 scales, ties to even."""
    found = np.zeros(x.shape)
    for row in range(x.shape[0]):
        for start in range(0, x.shape[1], step):
            part = x[row, start : start + step].astype(np.float32)
            largest = np.abs(part).max()
            if largest > 0:
                codes = np.rint(part * (np.float32(127) / largest))
                found[row, start : start + step] = codes * float(largest / np.float32(127))
    return found
