"""The C library's allocator: freed memory that is kept spares the kernel half of the time of small networks."""

from __future__ import annotations

import os
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_GIBIBYTE = 1 << 30


def keep_freed_memory() -> bool:
    """Tell glibc to keep the memory that is freed for what comes next, instead of giving it back to the kernel.

    Every activation of more than 32 MiB, and smaller ones in turns, is otherwise taken from the kernel and given back,
    zeroed page by page each time. Measured by `benchmarks/allocator.py`, see docs/performance.md. The process keeps up
    to 2 GiB that it no longer uses; no number changes. The command line calls it at the start of every command;
    LANDSCAPE_ALLOCATOR=default in the environment turns it off, there and here.

    Returns:
        Whether the allocator does: False on other C libraries than glibc, and where it was turned off.

    Example:
        >>> landscape.keep_freed_memory()  # before the first tensor is made
    """
    if sys.platform != "linux" or os.environ.get("LANDSCAPE_ALLOCATOR") == "default":
        return False
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # Older releases of glibc take no more than half of a thread's heap.
    kept = mallopt(_MMAP_THRESHOLD, _GIBIBYTE) or mallopt(_MMAP_THRESHOLD, 32 << 20)
    return bool(kept and mallopt(_TRIM_THRESHOLD, 2 * _GIBIBYTE - 1) and mallopt(_TOP_PAD, 256 << 20))
