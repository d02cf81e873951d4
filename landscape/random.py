"""Named random streams from one seed.

A draw depends on the seed and on the name of what is drawn, never on device, dtype, chunking or the order of other
draws: vectors are drawn whole, in float32 on the CPU, then cast and moved. Of a vector that is spread over processes
each draws all entries, piece by piece, and keeps its own: the draw does not depend on how many processes there are.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor

from landscape.ball.spread import spread_of
from landscape.results import digest

_PIECE = 1 << 24
"""Entries that are drawn at once where most belong to other processes."""


def stream(seed: int, name: str) -> torch.Generator:
    """A CPU generator for the purpose `name`; streams of different names or seeds are independent."""
    start = bytes.fromhex(digest.of_parts([f"{seed}:{name}"]))[:8]
    return torch.Generator().manual_seed(int.from_bytes(start, "little") >> 1)


def normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal vector with the length, device and dtype of `like`."""
    return _drawn(like, lambda n: torch.randn(n, generator=generator, dtype=torch.float32))


def uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    """Vector uniform in [-1, 1) with the length, device and dtype of `like`."""
    return _drawn(like, lambda n: 2 * torch.rand(n, generator=generator, dtype=torch.float32) - 1)


def rademacher(like: Tensor, generator: torch.Generator) -> Tensor:
    """Vector of independent +-1 with the length, device and dtype of `like`."""
    return _drawn(like, lambda n: torch.randint(0, 2, (n,), generator=generator, dtype=torch.int8) * 2 - 1)


def _drawn(like: Tensor, draw: Callable[[int], Tensor]) -> Tensor:
    spread = spread_of(like)
    if spread is None:
        return draw(like.numel()).to(like)
    kept, start = [], 0
    for length in _lengths(spread.length):
        piece = draw(length)
        for first, last in spread.ranges:
            kept.append(piece[max(first - start, 0) : max(last - start, 0)])
        start += length
    # Ranges ascend, and so do the pieces: in their order the entries are those of the part.
    return torch.cat(kept).to(like)


def _lengths(d: int) -> Iterator[int]:
    """Lengths of pieces whose draws, one after the other, are those of d entries at once.

    Torch draws normal numbers in groups of 16, the last group anew where it is short.
    """
    while d >= _PIECE + 16:
        yield _PIECE
        d -= _PIECE
    yield d


@contextlib.contextmanager
def undisturbed(*generators: torch.Generator) -> Iterator[None]:
    """After the context the global streams of Python, NumPy and torch (of every device in use) are as they were.

    So are these generators.
    """
    states = [generator.get_state() for generator in generators]
    python, arrays = random.getstate(), np.random.get_state()  # noqa: NPY002  the caller's, whoever draws from it
    try:
        with forked():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)  # noqa: NPY002
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def forked() -> AbstractContextManager[None]:
    """After the context torch's global streams, those of every device in use, are as they were.

    Named one by one: torch warns of a machine with several devices where it is to find them itself.
    """
    return torch.random.fork_rng(range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ())
