"""Slow packers of the layouts of GPTQ, AutoGPTQ's v1, AutoAWQ and bitsandbytes: bit by bit, in Python integers.

They were written from the formats' descriptions and share nothing with the readers.
"""

import numpy as np

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def words_of(values: list[int], bits: int) -> list[int]:
    """Values laid one after the other, lowest bit first, as signed 32-bit words."""
    stream = [(value >> bit) & 1 for value in values for bit in range(bits)]
    stream += [0] * (-len(stream) % 32)
    words = []
    for start in range(0, len(stream), 32):
        word = sum(bit << place for place, bit in enumerate(stream[start : start + 32]))
        words.append(word - 2**32 if word >= 2**31 else word)
    return words


def gptq(codes: np.ndarray, zeros: np.ndarray, scales: np.ndarray, bits: int, *, v1: bool) -> dict[str, np.ndarray]:
    """The tensors of one linear from codes [out, in], zero points and scales [out, groups], all from 0 up."""
    packed = np.array([words_of([int(c) for c in row], bits) for row in codes], dtype=np.int32).T
    rows = []
    for group in zeros.T:
        words = words_of([int(zero) for zero in group], bits)
        if v1 and bits in (2, 4, 8):  # one is subtracted from every field of a word at once, borrows included
            ones = sum(1 << place for place in range(0, 32, bits))
            words = [((word - ones + 2**31) % 2**32) - 2**31 for word in words]
        elif v1:
            words = words_of([(int(zero) - 1) % 2**bits for zero in group], bits)
        rows.append(words)
    return {
        "qweight": np.ascontiguousarray(packed),
        "qzeros": np.array(rows, dtype=np.int32),
        "scales": np.ascontiguousarray(scales.T),
    }


def _awq_words(values: np.ndarray) -> list[int]:
    words = []
    for start in range(0, len(values), 8):
        word = sum(int(values[start + column]) << (4 * place) for place, column in enumerate(AWQ_ORDER))
        words.append(word - 2**32 if word >= 2**31 else word)
    return words


def awq_gemm(codes: np.ndarray, zeros: np.ndarray, scales: np.ndarray) -> dict[str, np.ndarray]:
    """AutoAWQ's gemm layout from codes [out, in], zero points and scales [out, groups], from 0 up."""
    return {
        "qweight": np.array([_awq_words(column) for column in codes.T], dtype=np.int32),
        "qzeros": np.array([_awq_words(group) for group in zeros.T], dtype=np.int32),
        "scales": np.ascontiguousarray(scales.T),
    }


def awq_gemv(codes: np.ndarray, zeros: np.ndarray, scales: np.ndarray, words: int) -> dict[str, np.ndarray]:
    """AutoAWQ's gemv layout, whose zero points and scales are padded to `words` words a row."""
    short = words * 8 - zeros.shape[1]
    return {
        "qweight": np.array([words_of([int(c) for c in row], 4) for row in codes], dtype=np.int32),
        "qzeros": np.array([words_of([int(z) for z in row] + [0] * short, 4) for row in zeros], dtype=np.int32),
        "scales": np.pad(scales, ((0, 0), (0, short))),
    }


def dense(codes: np.ndarray, zeros: np.ndarray, scales: np.ndarray, group_of: np.ndarray) -> np.ndarray:
    """The weight, element by element; `group_of` is the group of each column."""
    weight = np.empty(codes.shape, dtype=np.float32)
    for row in range(codes.shape[0]):
        for column in range(codes.shape[1]):
            group = group_of[column]
            difference = np.float32(int(codes[row, column]) - int(zeros[row, group]))
            weight[row, column] = difference * np.float32(scales[row, group])
    return weight


def bnb_dense(state: dict[str, np.ndarray], shape: tuple[int, int], block: int, nested: dict | None) -> np.ndarray:
    """bitsandbytes' 4-bit weight, code by code; `nested` has `blocksize` and `offset` of doubly quantized scales."""
    weight = np.empty(shape[0] * shape[1], dtype=np.float32)
    packed = state["weight"].reshape(-1)
    for place in range(len(weight)):
        byte = int(packed[place // 2])
        code = byte >> 4 if place % 2 == 0 else byte & 15
        scale = state["weight.absmax"][place // block]
        if nested is not None:
            outer = state["weight.nested_absmax"][place // block // nested["blocksize"]]
            inner = np.float32(state["weight.nested_quant_map"][int(scale)]) * np.float32(outer)
            scale = np.float32(inner + np.float32(nested["offset"]))
        weight[place] = np.float32(state["weight.quant_map"][code]) * np.float32(scale)
    return weight.reshape(shape)


def hqq_words(codes: np.ndarray, bits: int, per: int) -> np.ndarray:
    """HQQ's stacked rows: codes [rows, columns] in `per` layers, the first in the highest bits of each number."""
    height = -(-len(codes) // per)
    words = np.zeros((height, codes.shape[1]), dtype=np.int32)
    for row in range(len(codes)):
        layer, at = divmod(row, height)
        for column in range(codes.shape[1]):
            words[at, column] |= int(codes[row, column]) << (bits * (per - 1 - layer))
    return words
