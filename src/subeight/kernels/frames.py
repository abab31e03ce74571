"""Room for Python's own frames, so that products of microseconds do not wait for the kernel's memory.

CPython keeps frames in chunks of 16 KiB. A call at the end of one takes another from the system and gives it back when
it returns: 10 microseconds, and twice the time of a compiled token of smollm2 where the caller stands so deep that each
product crosses the border (https://github.com/python/cpython/issues/142183).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
WORDS = 8000  # of the frame: its chunk is then of 128 KiB, and half of it is left to what is called


def _with_wide_frame() -> Callable[[Callable[[], Any]], Any]:
    """A function of many variables that it never sets."""
    unset = " = ".join(f"unset{number}" for number in range(WORDS))
    made: dict[str, Any] = {}
    exec(f"def call_it(call):\n    if call is None:\n        {unset} = 0\n    return call()\n", made)
    return made["call_it"]  # type: ignore[no-any-return]


_CALL = _with_wide_frame()


def with_room(call: Callable[[], T]) -> T:
    """What `call` returns, called where 64 KiB are left for the frames of all that it calls."""
    return _CALL(call)  # type: ignore[no-any-return]
