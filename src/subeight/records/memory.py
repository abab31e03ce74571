"""How much memory this process used at most, and how much is free."""

import ctypes
import os
import re
import resource
import sys
from pathlib import Path


def peak_rss_bytes() -> int:
    """Largest resident size of this process so far, in bytes."""
    status = Path("/proc/self/status")
    # getrusage's maximum is inherited across exec from a larger parent; the kernel's VmHWM is not.
    if status.is_file() and (found := re.search(r"^VmHWM:\s*(\d+) kB", status.read_text(), re.MULTILINE)):
        return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def free_bytes() -> int:
    """Memory that programs can still have without swapping, in bytes."""
    about = Path("/proc/meminfo")
    if about.is_file() and (found := re.search(r"^MemAvailable:\s*(\d+) kB", about.read_text(), re.MULTILINE)):
        return int(found[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def return_freed() -> None:
    """Gives what was freed back to the system where the C library keeps it for later (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
