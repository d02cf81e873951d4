"""References for `benchmarks/public.py`: float64, plain autograd and SciPy; no code of `landscape`."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any

import numpy as np
import peers
import torch
from peers import LOSS, Case, K
from torch import Tensor


def references(
    case: Case,
    rho: float,
    plane: Sequence[Tensor],
    vectors: Callable[[], Tensor] | None,
    known: Container[str],
) -> Iterator[tuple[str, Any]]:
    """What is true of a network, to more digits than anyone is asked for: names and values, the quick ones first.

    Args:
        case: the network and its examples.
        rho: radius of SAM sharpness.
        plane: two directions, each (d,); the corners lie at -1 and 1.
        vectors: (k, d), eigenvectors to compute the eigenvalues of; None: by ARPACK, which takes seven times as long.
        known: names that are left out.
    """
    rows = vectors() if vectors and "eigenvalues" not in known else None
    case.model.double()
    try:
        exact = Case(case.name, case.model, case.x.double(), case.y, case.batch_size)
        works: dict[str, Callable[[], Any]] = {
            "loss": lambda: _gradient(exact)[0],
            "sam": lambda: [_sam(exact, rho)],
            "surface": lambda: _corners(exact, plane),
            "trace": lambda: [_trace(exact)],
            "eigenvalues": lambda: (_arpack(exact) if rows is None else _rayleigh(exact, rows)).tolist(),
        }
        for name, work in works.items():
            if name not in known:
                yield name, work()
    finally:
        case.model.float()


def _sam(case: Case, rho: float) -> float:
    loss, gradient = _gradient(case)
    length = sum(float(g.square().sum()) for g in gradient) ** 0.5
    return _loss_at(case, [rho / length * g for g in gradient]) - loss


def _gradient(case: Case) -> tuple[float, list[Tensor]]:
    total, sums = 0.0, [torch.zeros_like(p) for p in case.parameters]
    for x, y in case.batches():
        loss = LOSS(case.model(x), y) * len(x) / len(case.x)
        total += float(loss.detach())
        for s, g in zip(sums, torch.autograd.grad(loss, case.parameters), strict=True):
            s.add_(g)
    return total, sums


def _product(case: Case, vector: Tensor) -> Tensor:
    vectors, total = _tensors(vector, case), torch.zeros_like(vector)
    for x, y in case.batches():
        loss = LOSS(case.model(x), y) * len(x) / len(case.x)
        gradient = torch.autograd.grad(loss, case.parameters, create_graph=True)
        columns = torch.autograd.grad(gradient, case.parameters, vectors)
        total += torch.cat([c.reshape(-1) for c in columns])
    return total


def _arpack(case: Case) -> np.ndarray:
    """The largest; an eigenvalue's error is the square of the tolerance over the gap, below 1e-6 of it."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    d = sum(p.numel() for p in case.parameters)
    operator = LinearOperator(
        (d, d), matvec=lambda v: _product(case, torch.from_numpy(v.reshape(-1).copy())).numpy(), dtype=np.float64
    )
    start = np.random.default_rng(1).standard_normal(d)
    return peers.descending(eigsh(operator, k=K, which="LA", tol=1e-4, v0=start, return_eigenvectors=False))


def _rayleigh(case: Case, rows: Tensor) -> np.ndarray:
    """Eigenvalues within the span of the rows, whose error is the square of the vectors'."""
    basis = torch.linalg.qr(rows.double().T).Q.T
    projected = torch.stack([_product(case, v) for v in basis]) @ basis.T
    return peers.descending(torch.linalg.eigvalsh((projected + projected.T) / 2))


def _trace(case: Case) -> float:
    """Of J' S S' J, S S' = diag(p) - p p', image by image: the Hessian's where every layer is linear or a ReLU."""
    total = 0.0
    for image in case.x:
        outputs = case.model(image[None])[0]
        p = outputs.detach().softmax(0)
        factors = (torch.eye(len(p), dtype=p.dtype) - p) * p.sqrt()[:, None]
        for row in factors:
            gradient = torch.autograd.grad(outputs, case.parameters, row, retain_graph=True)
            total += float(torch.stack([g.square().sum() for g in gradient]).sum())
    return total / len(case.x)


@torch.no_grad()
def _loss_at(case: Case, step: list[Tensor]) -> float:
    center = [p.clone() for p in case.parameters]
    for p, s in zip(case.parameters, step, strict=True):
        p.add_(s)
    loss = sum(float(LOSS(case.model(x), y)) * len(x) for x, y in case.batches()) / len(case.x)
    for p, c in zip(case.parameters, center, strict=True):
        p.copy_(c)
    return loss


def _corners(case: Case, plane: Sequence[Tensor]) -> list[float]:
    """The loss at the corners of the surface, the weights moved by hand."""
    first, second = (_tensors(v.double(), case) for v in plane)
    ends = (-1.0, 1.0)
    return [_loss_at(case, [a * s + b * t for s, t in zip(first, second, strict=True)]) for a in ends for b in ends]


def _tensors(vector: Tensor, case: Case) -> list[Tensor]:
    parts = vector.split([p.numel() for p in case.parameters])
    return [part.view_as(p) for part, p in zip(parts, case.parameters, strict=True)]
