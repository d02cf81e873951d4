"""How much memory is free, and what a computation will take of it."""

from __future__ import annotations

import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from landscape.ball.spread import spread_of

if TYPE_CHECKING:
    from landscape.problem.problem import Problem


def size(count: float) -> str:
    """Bytes in the unit that fits them: "3.2 GiB"."""
    units = ("bytes", "KiB", "MiB", "GiB", "TiB")
    power = min(max(int(math.log2(max(count, 1)) // 10), 0), len(units) - 1)
    value = count / 1024**power
    return f"{value:.{4 if value >= 1000 else 3}g} {units[power]}"


LEAST_BEYOND = 8
"""Vectors of the smallest basis beside the k that are wanted."""
BESIDE = 3
"""Vectors that are held beside the wanted eigenvectors where no basis is kept (`landscape.curvature.two_pass`)."""
BESIDE_HOSTED = 6
"""The same where the basis lives in the host's memory."""
_LAPTOP = 4e9
_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")
_STATUS = Path("/proc/self/status")


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


def peak_memory(device: torch.device) -> float:
    """Most bytes that this process has held at once so far: of a GPU what torch reserved there, else of the machine.

    nan on a system that does not say.
    """
    if device.type == "cuda":
        return float(torch.cuda.max_memory_reserved(device))
    try:
        lines = _STATUS.read_text(encoding="ascii").splitlines()
        return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (ValueError, OSError, StopIteration):  # not Linux
        return _peak_by_posix()


def _peak_by_posix() -> float:
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * (1 if sys.platform == "darwin" else 1024)


@dataclass(frozen=True)
class Plan:
    """What curvature of a Problem needs in memory, in bytes, beside what is free.

    Attributes:
        dimension: d.
        vectors: vectors of length d that are held.
        vector_bytes: of all of them.
        chunk_size: examples in a chunk.
        chunks: how many there are.
        chunk_bytes: the graph of a first derivative of one chunk.
        product_bytes: what a product that builds the graph of a chunk takes at most.
        graphs_bytes: the graphs of all chunks, kept between products as far as they fit in half of what is free.
        free_bytes: what can still be allocated.
        fitting_vectors: vectors that would fit.
        eigenpairs: for which the vectors are held; None where their number was given.
        basis: where Lanczos keeps its basis for them: "device", "host" or "none".
    """

    dimension: int
    vectors: int
    vector_bytes: float
    chunk_size: int
    chunks: int
    chunk_bytes: float
    product_bytes: float
    graphs_bytes: float
    free_bytes: float
    fitting_vectors: int
    eigenpairs: int | None = None
    basis: str = "device"

    @property
    def kept_share(self) -> float:
        """The part of the graphs that is kept between products: as far as they fit in half of what is free."""
        return min(1.0, 0.5 * self.free_bytes / max(self.graphs_bytes, 1.0))

    @property
    def needed_bytes(self) -> float:
        """Vectors and one product: the least that works."""
        return self.vector_bytes + self.product_bytes

    def require(self) -> None:
        """Raise InputError where the least does not fit, with the nearest setting that does."""
        if self.needed_bytes > self.free_bytes:
            from landscape.errors import InputError

            raise InputError(f"{self}; that does not fit: {self._nearest()}restrict parameters")

    def _nearest(self) -> str:
        if self.eigenpairs is None:
            return f"hold at most {self.fitting_vectors} vectors (a smaller k), or "
        fitting = self.fitting_vectors - BESIDE
        return f"find at most {fitting} (a smaller k), or " if fitting > 0 else ""

    def __str__(self) -> str:
        vectors = f"{self.vectors} vectors of {size(self.vector_bytes / self.vectors)}" if self.vectors else ""
        if self.eigenpairs is not None:
            vectors += f" for {self.eigenpairs} eigenpair{'s' if self.eigenpairs > 1 else ''}"
            vectors += _WORDS[self.basis]
        vectors += ", " if vectors else ""
        chunk = f"{self.chunks} chunk{'s' if self.chunks > 1 else ''} of {self.chunk_size} examples"
        graphs = f" ({size(self.graphs_bytes)} where all are kept)" if self.chunks > 1 else ""
        return (
            f"d = {self.dimension:,}: {vectors}{chunk} with a graph of {size(self.chunk_bytes)} each{graphs}, products "
            f"of up to {size(self.product_bytes)}; {size(self.free_bytes)} are free"
        )


_WORDS = {
    "device": "",
    "host": " with the basis in the host's memory",
    "none": " without a basis (at least twice the products)",
}


def way(eigenpairs: int, fitting: float, hosted: float = 0.0) -> tuple[int, str]:
    """(vectors that Lanczos holds beside model and gradient, where its basis is), by how many vectors fit.

    * "device": 3 (k + 8), where they fit: the basis of the look for missed eigenvalues, what it locks and what is
      returned come beside the first basis, as was measured.
    * "host": k + 6, of several pairs, where the host holds 3 (k + 8).
    * "none": k + 3 (see `landscape.curvature.two_pass`). One pair takes twice the products, which cost less than a
      basis that vectors travel to; each further one as much again.

    Args:
        eigenpairs: k.
        fitting: vectors of length d that fit where the products are computed.
        hosted: of the host's memory, see `hosted`.
    """
    least = 3 * (eigenpairs + LEAST_BEYOND)
    if least <= fitting:
        return least, "device"
    if eigenpairs > 1 and least <= hosted and eigenpairs + BESIDE_HOSTED <= fitting:
        return eigenpairs + BESIDE_HOSTED, "host"
    return eigenpairs + BESIDE, "none"


def hosted(like: Tensor) -> float:
    """Vectors like this in half of the host's free memory; 0 where they live there, or are spread over processes."""
    if like.device.type == "cpu" or spread_of(like) is not None:
        return 0.0
    return 0.5 * free_memory(torch.device("cpu")) / max(like.numel() * like.element_size(), 1)


def plan(problem: Problem, *, vectors: int = 0, eigenpairs: int | None = None) -> Plan:
    """The plan of these vectors, or eigenpairs, and of Hessian-vector products at the weights; see `Plan`."""
    from landscape.curvature.products import chunks, second_derivative

    leaves = problem.leaves()
    with second_derivative.twice_differentiable(problem.model), problem.bound_tensors(leaves):
        footprint = second_derivative.named(lambda: chunks.footprint(problem, leaves))
    chunked = chunks.chosen(problem, footprint)
    sizes = chunked.batches.sizes
    free, one = free_memory(problem.weights.device), problem.dimension * problem.weights.element_size()
    graph, graphs = footprint.bytes(max(sizes)), sum(footprint.bytes(s) for s in sizes)
    product = chunks.REBUILT * graph
    basis = "device"
    if eigenpairs is not None:
        kept = min(graphs, chunks.budget(chunked, footprint))
        fitting = (free - max(product, kept + chunks.BESIDE_KEPT * graph)) / one
        vectors, basis = way(eigenpairs, fitting, hosted(problem.weights))
    return Plan(
        dimension=problem.dimension,
        vectors=vectors,
        vector_bytes=float(vectors * one),
        chunk_size=max(sizes),
        chunks=len(sizes),
        chunk_bytes=graph,
        product_bytes=product,
        graphs_bytes=graphs,
        free_bytes=free,
        fitting_vectors=max(int((free - product) // one), 0),
        eigenpairs=eigenpairs,
        basis=basis,
    )
