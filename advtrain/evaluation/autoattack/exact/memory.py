"""Keeps freed memory in the process while an attack runs on a CPU.

glibc gives the memory of large tensors back to the system as soon as they are freed, and the next layer gets it again
page by page, each one a fault and cleared. It adapts to the sizes it sees, but to none above 32 MB. In thousands of
passes of the same size that can be a third of the time.
"""

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
KEEP = {M_MMAP_THRESHOLD: 2**30, M_TRIM_THRESHOLD: 2**31 - 1}
# Where glibc's own adaptation ends that these settings replace.
USUAL = {M_MMAP_THRESHOLD: 2**25, M_TRIM_THRESHOLD: 2**26}

_depth = 0


@contextmanager
def kept_memory() -> Iterator[None]:
    """Inside, freed memory stays with the process; at the end it goes back to the system. Also a decorator.

    No number changes. Does nothing without glibc, or where the user has set its allocator by environment variables.
    Contexts may be nested; the outermost one counts.
    """
    global _depth
    if not adjustable():
        yield
        return
    _depth += 1
    try:
        if _depth == 1:
            _set(KEEP)
        yield
    finally:
        _depth -= 1
        if not _depth:
            _set(USUAL)
            ctypes.CDLL(None).malloc_trim(0)


def adjustable() -> bool:
    """Whether this process uses glibc's allocator with its own settings."""
    chosen = any(name.startswith("MALLOC_") for name in os.environ) or "malloc" in os.environ.get("GLIBC_TUNABLES", "")
    return platform.libc_ver()[0] == "glibc" and not chosen


def _set(values: dict[int, int]) -> None:
    for parameter, value in values.items():
        ctypes.CDLL(None).mallopt(parameter, value)
