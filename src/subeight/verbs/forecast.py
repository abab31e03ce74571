"""What a run will take before it is begun: seconds from a measured product, memory and disk from sizes.

Memory is what a process holds beyond its imports. The predictions are checked against measured runs by
`benchmarks/scale.py`; how far off they were stands in docs/scale.md.
"""

import time
from dataclasses import dataclass
from typing import Any

import torch

from subeight.models.model import Model
from subeight.text import EvaluationSet
from subeight.verbs.session import Session

SLOWER = 2.5  # a block over a product of the same multiply-adds: attention, norms, casts, narrow matrices
READING = 1e9  # bytes a second from disk, dequantized and checked
LOOKING = 1.5e-7  # seconds for each weight that a diagnosis compares with the baseline's
PASSES = 12  # of a diagnosis: its median is 10 measurements, and two passes come before them
LATE = 50_000_000  # bytes of libraries that are loaded on the way, and of freed memory that the system has not got back
BUFFER = 64 << 20  # of logits, at most, and there are two
UNPACKED = 16  # bytes for each weight of a linear while its codes become a weight


@dataclass(frozen=True)
class Sizes:
    """Counts of weights: of the largest block, of its largest linear, of all blocks, outside them, and of the head."""

    block: int
    linear: int
    blocks: int
    depth: int
    outside: int
    head: int
    width: int

    @classmethod
    def of(cls, model: Model) -> "Sizes":
        """From the skeleton; no weight is read."""
        each = [sum(p.numel() for p in block.parameters()) for block in model.skeleton.blocks]
        whole = {name: p.numel() for name, p in model.skeleton.model.named_parameters()}
        text = model.config.get_text_config(decoder=True)
        return cls(
            block=max(each),
            linear=max(linear.count for linear in model.linears if linear.block is not None),
            blocks=sum(each),
            depth=len(each),
            outside=sum(whole[name] for name in model.skeleton.shell_parameters()),
            head=text.vocab_size * text.hidden_size,
            width=text.hidden_size,
        )


def product_rate(session: Session) -> float:
    """Multiply-adds of this machine's dtype a second, times two, from one matrix product; other work does not count."""
    a = torch.ones(1024, 1024, dtype=session.dtype, device=session.device)
    on_cpu = session.device.type == "cpu"
    clock, share = (time.process_time, torch.get_num_threads()) if on_cpu else (time.perf_counter, 1)
    best = float("inf")
    for _ in range(4):
        began = clock()
        (a @ a).sum().item()
        best = min(best, max(clock() - began, 1e-6) / share)
    return 2 * 1024**3 / best


def evaluation(session: Session, model: Model, text: EvaluationSet) -> dict[str, Any]:
    """Of an `evaluate`: two passes, and the baseline's answers where prompts wait for them."""
    size, bytes, rate = Sizes.of(model), session.dtype.itemsize, product_rate(session)
    waiting = sum(sample.needs_answer for sample in text.samples)
    states = text.tokens * size.width * bytes
    seconds = 2 * _pass(size, text.tokens, rate, bytes)
    if waiting:
        read = bytes * (size.blocks + size.outside)
        each = read / READING if read > session.computing.room else 0.0
        seconds += 64 * (each + waiting * read / (4 * READING))  # a token reads all weights from memory at least
    held = min(states, session.computing.room // 4)
    return {
        "seconds": round(seconds, 1),
        "memory_bytes": int(LATE + _shell(size, bytes, text.tokens) + _one_block(size, bytes) + held + 2 * states),
        "disk_bytes": states + (states - held),
    }


def diagnosis(session: Session, model: Model, text: EvaluationSet) -> dict[str, Any]:
    """Of a `diagnose` with its usual number of measurements; each suspect that is cleared early makes it less."""
    size, bytes, rate = Sizes.of(model), session.dtype.itemsize, product_rate(session)
    room = session.computing.room
    states = text.tokens * size.width * bytes
    trails = 2 * size.depth * states
    aligning = 2 * 4 * size.block + 8 * 4 * size.linear
    probing = min(2 * bytes * size.blocks, room // 2) + _one_block(size, bytes) + min(trails, room // 4)
    return {
        "seconds": round(PASSES * _pass(size, text.tokens, rate, bytes) + LOOKING * size.blocks, 1),
        "memory_bytes": int(LATE + 2 * _shell(size, bytes, text.tokens) + max(aligning, probing) + 2 * states),
        "disk_bytes": states + max(0, trails - room // 4),
    }


def mapping(
    session: Session, model: Model, tokens: int, formats: int, token_blocks: float, measured: int
) -> dict[str, Any]:
    """Of the measuring of a `map` in `measured` of the blocks, after the model is quantized in every format.

    What follows a block is run for each of them, in two rounds as a rule, and read again where it is not kept.
    """
    size, bytes, rate = Sizes.of(model), session.dtype.itemsize, product_rate(session)
    room = session.computing.room
    trails = 2 * size.depth * tokens * size.width * bytes
    variants = (formats + 3) * bytes * size.block + UNPACKED * size.linear
    ends = (formats + 3) * bytes * size.outside
    whole = bytes * size.blocks
    missing = max(0.0, 1 - room // 4 / whole)  # the share of the blocks that has to go
    reading = measured * missing * whole / READING  # half of the blocks in the mean, twice
    return {
        "seconds": round(2 * size.blocks / size.depth * token_blocks / rate * SLOWER + reading, 1),
        "memory_bytes": int(LATE + ends + min(2 * bytes * size.blocks, room // 2) + min(trails, room // 4) + variants),
        "disk_bytes": max(0, trails - room // 4),
    }


def _pass(size: Sizes, tokens: int, rate: float, bytes: int) -> float:
    """Seconds of one pass of a text through the blocks and the head."""
    return 2 * (size.blocks + 2 * size.head) * tokens / rate * SLOWER + bytes * size.blocks / READING


def _shell(size: Sizes, bytes: int, tokens: int) -> int:
    """Embeddings and head, the head twice in float32 (candidate and baseline), and buffers of logits."""
    return bytes * size.outside + 2 * 4 * size.head + 2 * min(BUFFER, 4 * tokens * size.head // size.width)


def _one_block(size: Sizes, bytes: int) -> int:
    """A block as it computes, and one linear on its way there."""
    return bytes * size.block + UNPACKED * size.linear
