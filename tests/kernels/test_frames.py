import os
import sys
from collections.abc import Callable

import pytest

from subeight.kernels.frames import with_room

PLACES = 40  # more frames than a chunk of 16 KiB holds of what is called here


def _faults() -> int:
    """Pages that this process was given so far."""
    resource = pytest.importorskip("resource")
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def _nested(depth: int) -> int:
    return depth if depth == 0 else _nested(depth - 1)


def _given_by_many_calls() -> int:
    before = _faults()
    for _ in range(200):
        _nested(20)
    return _faults() - before


def _at(depth: int, call: Callable[[], int]) -> int:
    return call() if depth == 0 else _at(depth - 1, call)


def test_returns_and_raises_what_is_called():
    assert with_room(lambda: 3) == 3
    with pytest.raises(KeyError):
        with_room(lambda: {}[1])


@pytest.mark.skipif(sys.version_info < (3, 11), reason="frames are kept in chunks since 3.11")
@pytest.mark.skipif(os.name == "nt", reason="pages are not counted there")
def test_no_depth_takes_memory_by_every_call():
    plain = [_at(depth, _given_by_many_calls) for depth in range(4 * PLACES)]
    with_more = [_at(depth, lambda: with_room(_given_by_many_calls)) for depth in range(4 * PLACES)]
    if sys.version_info < (3, 13):  # later ones keep a chunk
        assert max(plain) >= 200  # some depth stands at the border
    assert max(with_more) < 200
