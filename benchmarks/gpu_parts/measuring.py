"""Times and memory on a device, and networks with random examples on it.

Every run ends by a synchronization. Memory is the peak of torch's allocator over one run; a CPU's is not measured.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from trainers.models import build_model
from trainers.names import parse_name

LOSS = nn.CrossEntropyLoss()
Rows = list[list[object]]


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def finishing(device: torch.device, run: Callable[[], object]) -> Callable[[], None]:
    """`run` that ends when the device has."""

    def whole() -> None:
        run()
        synchronize(device)

    return whole


def timed(device: torch.device, run: Callable[[], Any]) -> tuple[Any, float]:
    """(result, seconds) of one run."""
    synchronize(device)
    start = time.perf_counter()
    result = run()
    synchronize(device)
    return result, time.perf_counter() - start


def peak(device: torch.device, run: Callable[[], object]) -> float:
    """Bytes that a run takes beyond what was there before; nan on a CPU."""
    if device.type != "cuda":
        run()
        return math.nan
    free(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    synchronize(device)
    return float(torch.cuda.max_memory_allocated(device) - before)


def free(device: torch.device) -> None:
    """Give back what nobody refers to any more."""
    gc.collect()
    if device.type == "cuda":
        synchronize(device)
        torch.cuda.empty_cache()


def gigabytes(size: float) -> str:
    """A size for a cell."""
    return "-" if math.isnan(size) else f"{size / 2**30:.2f}"


def images(network: str, shape: tuple[int, ...], count: int, device: torch.device) -> tuple[nn.Module, Tensor, Tensor]:
    """A network in evaluation mode and random examples."""
    torch.manual_seed(0)
    name, arguments = parse_name(network)
    model = build_model(name, classes=10, input_shape=shape, **arguments).to(device).eval()
    return model, torch.randn(count, *shape, device=device), torch.randint(0, 10, (count,), device=device)
