"""Named random streams from one seed.

A draw depends on the seed and on the name of what is drawn, never on device, dtype, chunking or the order of other
draws: vectors are drawn whole, in float32 on the CPU, then cast and moved.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor

from landscape.results import digest


def stream(seed: int, name: str) -> torch.Generator:
    """A CPU generator for the purpose `name`; streams of different names or seeds are independent."""
    start = bytes.fromhex(digest.of_parts([f"{seed}:{name}"]))[:8]
    return torch.Generator().manual_seed(int.from_bytes(start, "little") >> 1)


def normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal vector with the length, device and dtype of `like`."""
    return torch.randn(like.numel(), generator=generator).to(like)


def uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    """Vector uniform in [-1, 1) with the length, device and dtype of `like`."""
    return (2 * torch.rand(like.numel(), generator=generator) - 1).to(like)


def rademacher(like: Tensor, generator: torch.Generator) -> Tensor:
    """Vector of independent +-1 with the length, device and dtype of `like`."""
    return (torch.randint(0, 2, (like.numel(),), generator=generator, dtype=torch.int8) * 2 - 1).to(like)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """After the context the global streams of Python, NumPy and torch (of every device in use) are as they were."""
    python, arrays = random.getstate(), np.random.get_state()  # noqa: NPY002  the caller's, whoever draws from it
    try:
        with forked():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)  # noqa: NPY002


def forked() -> AbstractContextManager[None]:
    """After the context torch's global streams, those of every device in use, are as they were.

    Named one by one: torch warns of a machine with several devices where it is to find them itself.
    """
    return torch.random.fork_rng(range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ())
