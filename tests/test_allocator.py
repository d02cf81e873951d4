"""Freed memory is kept where that was asked for: the kernel is not asked for the same pages again and again."""

import os
import platform
import subprocess
import sys

import pytest

import landscape

CHILD = """
import resource, landscape, numpy as np
print(landscape.keep_freed_memory())
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(2): np.ones(1 << 23)
before = faults()
for _ in range(5): np.ones(1 << 23)
print(faults() - before)
"""


def run(**environment):
    done = subprocess.run(
        [sys.executable, "-c", CHILD], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    kept, faults = done.stdout.split()
    return kept == "True", int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_freed_memory_is_kept():
    """Five times 64 MiB, 16,384 pages of 4 KiB each (fewer page faults where the system's pages are huge)."""
    assert run(LANDSCAPE_ALLOCATOR="keep")[0]
    kept, few = run(LANDSCAPE_ALLOCATOR="keep")
    off, many = run(LANDSCAPE_ALLOCATOR="default")
    assert (kept, off) == (True, False)
    assert few < 20
    assert many > 5 * few + 100


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert landscape.keep_freed_memory() is False
