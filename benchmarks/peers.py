"""Eigenvalues and traces by others, of the same matrix: PyHessian, curvlinops with SciPy's ARPACK, hessian-eigenthings.

Peers that are not installed are skipped with a message. To install them (without dependencies: curvlinops would pull a
torchvision that cannot load beside a CPU build of torch), into the environment or into a folder for `--peers FOLDER`:

    pip install --no-deps [--target FOLDER] PyHessian==0.1 hessian-eigenthings==1.0.0a5
    pip install --no-deps -r tests/oracles.txt
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

LOSS = nn.CrossEntropyLoss()
K = 5


@dataclass
class Case:
    """A network in evaluation mode, its examples, the size of the batches that peers get, and the truth when known."""

    name: str
    model: nn.Module
    x: Tensor
    y: Tensor
    batch_size: int | None = None
    values: np.ndarray = field(default_factory=lambda: np.zeros(K))
    trace: float = 0.0

    @property
    def parameters(self) -> list[Tensor]:
        """The model's tensors."""
        return list(self.model.parameters())

    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """The examples in equal batches (hessian-eigenthings weighs all alike), default one of all."""
        size = self.batch_size or len(self.x)
        return list(zip(self.x.split(size), self.y.split(size), strict=True))


@dataclass(frozen=True)
class Outcome:
    """What an arm returns: its numbers, largest first, the products it took, and what it says of their error."""

    values: np.ndarray
    products: int
    says: str = "nothing"
    bounds: list[float] | None = None


Arm = tuple[str, Callable[[], Outcome]]


@functools.cache
def peer(name: str) -> Any:
    """The module, or None with a message."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        print(f"{name} skipped: {error}", file=sys.stderr)
        return None


@functools.cache
def counted(name: str, attribute: str) -> list[int]:
    """Wrap a function of a peer's module so that it counts its calls."""
    count, module = [0], peer(name)
    original = getattr(module, attribute)

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        count[0] += 1
        return original(*args, **kwargs)

    setattr(module, attribute, wrapper)
    return count


def descending(values: Any) -> np.ndarray:
    """The values as float64, largest first."""
    return np.sort(np.asarray(values, dtype=np.float64))[::-1]


def eigenvalue_arms(case: Case, seed: int) -> Iterator[Arm]:
    """The five largest eigenvalues, at every peer's defaults and at the settings that reach 1e-3."""
    if peer("pyhessian.hessian"):
        yield "PyHessian, defaults", lambda: _pyhessian(case, seed, lambda h: h.eigenvalues(top_n=K)[0])
        yield (
            "PyHessian, tol 1e-4",
            lambda: _pyhessian(case, seed, lambda h: h.eigenvalues(top_n=K, tol=1e-4, maxIter=1000)[0]),
        )
    if peer("curvlinops"):
        yield "curvlinops + eigsh, tol 1e-2", lambda: _arpack(case, seed)
    if peer("hessian_eigenthings"):
        yield "hessian-eigenthings, defaults", lambda: _lanczos(case, seed, None)
        yield "hessian-eigenthings, 20 steps (by hand)", lambda: _lanczos(case, seed, 20)


def trace_arms(case: Case, seed: int, probes: int = 99) -> Iterator[Arm]:
    """The trace, at every peer's defaults."""
    if peer("pyhessian.hessian"):
        yield "PyHessian, defaults", lambda: _pyhessian(case, seed, lambda h: [np.mean(h.trace())])
    if eigenthings := peer("hessian_eigenthings"):

        def sketch() -> Outcome:
            result = eigenthings.hutch_plus_plus(_operator(case), num_matvecs=probes, seed=seed)
            return Outcome(descending([float(result.estimate)]), probes, f"standard error {float(result.stderr):.2g}")

        yield f"hessian-eigenthings, Hutch++ {probes}", sketch


def _pyhessian(case: Case, seed: int, work: Callable[[Any], Any]) -> Outcome:
    module, count = peer("pyhessian.hessian"), counted("pyhessian.hessian", "hessian_vector_product")
    torch.manual_seed(seed)
    count[0] = 0
    values = work(module.hessian(case.model, LOSS, data=(case.x, case.y), cuda=False))
    case.model.zero_grad(set_to_none=True)  # it leaves a graph in .grad
    return Outcome(descending(values), count[0])


def _arpack(case: Case, seed: int) -> Outcome:
    from scipy.sparse.linalg import LinearOperator, eigsh

    arguments = (case.model, LOSS, case.parameters, case.batches())
    inner = peer("curvlinops").HessianLinearOperator(*arguments).to_scipy()
    calls = [0]

    def multiply(v: np.ndarray) -> np.ndarray:
        calls[0] += 1
        return inner @ v

    operator = LinearOperator(inner.shape, matvec=multiply, dtype=inner.dtype)
    start = np.random.default_rng(seed).standard_normal(inner.shape[0]).astype(inner.dtype)
    values = eigsh(operator, k=K, which="LA", tol=1e-2, v0=start, return_eigenvectors=False)
    return Outcome(descending(values), calls[0])


def _operator(case: Case) -> Any:
    eigenthings = peer("hessian_eigenthings")
    return eigenthings.HessianOperator(case.model, case.batches(), eigenthings.supervised_loss(LOSS))


def _lanczos(case: Case, seed: int, steps: int | None) -> Outcome:
    result = peer("hessian_eigenthings").lanczos(_operator(case), k=K, max_iter=steps, which="LA", seed=seed)
    settled, worst = int(result.converged.sum()), float((result.residuals / result.eigenvalues.abs()).max())
    says = f"{settled} of {K} converged, residuals up to {worst:.1e}"
    return Outcome(descending(result.eigenvalues.double().numpy()), result.iterations, says)
