"""Asking for disk space before a long run, not finding out at its end."""

import shutil
from pathlib import Path

from subeight.errors import OutputError


def require_space(path: Path | str, needed: int) -> None:
    """Refuse when the disk of `path` (which need not exist yet) has fewer than `needed` bytes free."""
    path = Path(path).absolute()
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise OutputError(
            f"{path} needs {human_bytes(needed)}, and its disk has {human_bytes(free)} free; "
            "free some, or choose another directory."
        )


def human_bytes(count: float) -> str:
    """A size as people say it, in powers of 1000: `98.3 MB`."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if abs(count) < 1000 or unit == "TB":
            return f"{count:.0f} bytes" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")
