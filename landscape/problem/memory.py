"""How much memory is free: what is kept between computations is decided by it."""

from __future__ import annotations

import os
from pathlib import Path

import torch

_LAPTOP = 4e9
_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")


def free_memory(device: torch.device) -> float:
    """Bytes that can still be allocated on a device.

    On a GPU what the driver reports and what torch holds in reserve; elsewhere the system's available memory (free
    pages alone would leave out the file cache, which the system gives back), within the limit of a container.
    """
    if device.type == "cuda":
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserve
    return min(_available(), _container())


def _available() -> float:
    try:
        for line in _MEMINFO.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) * 1024
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError, AttributeError, IndexError):  # not every system says
        return _LAPTOP


def _container() -> float:
    try:
        limit, used = ((_CGROUP / name).read_text(encoding="ascii") for name in ("memory.max", "memory.current"))
        return float(limit) - float(used)
    except (ValueError, OSError):  # no limit ("max"), or no control group
        return float("inf")
