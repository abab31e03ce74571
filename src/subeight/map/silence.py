"""Keeps a C library from writing to standard output, where `--json` puts the record and nothing else.

HiGHS prints a line of its own there whatever it is told (https://github.com/jump-dev/HiGHS.jl/issues/312).
"""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_STDOUT = 1


@contextmanager
def silent_stdout() -> Iterator[None]:
    """What is written to the process's standard output meanwhile goes nowhere, C's buffer included."""
    try:
        kept = os.dup(_STDOUT)
    except OSError:  # there is no standard output
        yield
        return
    _flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, _STDOUT)
        yield
    finally:
        _flush()
        os.dup2(kept, _STDOUT)
        os.close(nowhere)
        os.close(kept)


def _flush() -> None:
    """Empties Python's buffer and C's."""
    if sys.stdout is not None and not sys.stdout.closed:
        sys.stdout.flush()
    if os.name == "posix":
        ctypes.CDLL(None).fflush(None)
