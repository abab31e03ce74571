"""Writing files so that a crash leaves the old file or the new one, never half of one."""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from subeight.errors import OutputError

_MARK = ".partial"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


@contextlib.contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yields a fresh path in the same directory to write to; it is synced and renamed to `path` at the end.

    When the body raises, `path` is as it was before and the partial file is gone.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_MARK}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        _sync(partial)
        partial.replace(path)
        _sync(path.parent)
    except OSError as error:
        if sentence := _place_problem(error, path):
            raise OutputError(sentence) from error
        raise
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _place_problem(error: OSError, path: Path) -> str | None:
    """What is wrong with the place of the output; None when the error is one of the body's own."""
    if error.errno in _FULL:
        return f"There is no space left to write {path}; free some, or choose another --out."
    where = None if error.filename is None else Path(os.fsdecode(error.filename))
    if where is None or error.errno not in _FORBIDDEN:
        return None
    if where in (path, *path.parents) or is_partial(where):
        return f"{path} cannot be written ({error.strerror}); choose an --out that can be written."
    return None


def atomic_write(path: Path | str, data: bytes | str) -> Path:
    """Write a whole file at once: readers see the old content or the new, also after a crash."""
    with atomic_path(path) as partial:
        partial.write_bytes(data.encode() if isinstance(data, str) else data)
    return Path(path)


def remove_partials(directory: Path) -> None:
    """Remove what an interrupted `atomic_write` left behind anywhere under `directory`."""
    for partial in directory.rglob(f".*{_MARK}"):
        partial.unlink(missing_ok=True)


def is_partial(path: Path) -> bool:
    """Whether `path` was left behind by an interrupted `atomic_write`."""
    return path.name.startswith(".") and path.name.endswith(_MARK)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
