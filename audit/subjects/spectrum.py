"""Extreme eigenvalues of adversarial spectra against a dense solver: none that is called converged may be wrong.

Clustered, repeated up to ten times, of low rank, indefinite, with outliers, geometric; scales from 1e-12 to 1e12, both
dtypes, every end, with a basis and without. A draw that does not converge counts as refused: at most one in a hundred
may.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audit.verdict import Verdict
from landscape import random
from landscape.curvature import krylov
from landscape.curvature.operators import Operator

TOL = 1e-3
DIMENSIONS = (5, 12, 30, 60, 120, 200, 600)


def audit(seed: int) -> Verdict:
    """Draw by seed and compare."""
    return again(choice(seed))


def choice(seed: int) -> dict[str, Any]:
    """What is drawn by seed."""
    r = np.random.default_rng([7, seed])
    d = int(r.choice(DIMENSIONS))
    basis = bool(np.random.default_rng([9, seed]).random() < 0.7)
    return {
        "seed": seed,
        "kind": str(r.choice(list(KINDS))),
        "d": d,
        "k": min(int(r.integers(1, 11)), d if basis else 3),
        "which": str(r.choice(krylov.ENDS)),
        "scale": float(10.0 ** r.uniform(-12, 12)),
        "dtype": ["float32", "float64"][r.integers(2)],
        "diagonal": bool(r.random() < 0.3),
        "basis": basis,
    }


def again(kept: dict[str, Any]) -> Verdict:
    """Compare what was drawn before."""
    a, k, which = matrix(kept), kept["k"], kept["which"]
    right = extremes(np.linalg.eigvalsh(a.double().numpy()), k, which)
    verdict = Verdict(kept["seed"], kept["kind"], choice=kept)
    # Without a basis every pair takes two passes.
    capacity, most = (None, 500) if kept.get("basis", True) else (0, 20000)
    result = krylov.lanczos(
        Operator("matrix", lambda v: a @ v, a[0]),
        k,
        which=which,
        tol=TOL,
        generator=random.stream(kept["seed"], "spectrum"),
        capacity=capacity,
        max_products=most,
    )
    # Of two with nearly the same magnitude "LM" may take either.
    values, truth = (np.abs(x) if which == "LM" else x for x in (result.values, right))
    # 1.01: one within tol of the last that is wanted may stand in for it.
    allowed = np.maximum(1.01 * TOL * np.abs(truth), result.rounding)
    if not result.converged:
        verdict.refused(f"not converged after {result.products} products")
    elif np.any(np.abs(values - truth) > allowed):
        verdict.wrong(f"{result.values.tolist()} called converged, right {right.tolist()}")
    residuals = torch.linalg.vector_norm(
        result.vectors.double() @ a.double() - torch.from_numpy(result.values)[:, None] * result.vectors.double(), dim=1
    )
    if np.any(residuals.numpy() > result.residuals + result.rounding):
        verdict.wrong(f"residuals {residuals.tolist()} above their bounds {result.residuals.tolist()}")
    return verdict


def simpler(kept: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Choices with one thing less in them."""
    smaller = [d for d in DIMENSIONS if d < kept["d"]]
    changes: list[dict[str, Any]] = [{"scale": 1.0}, {"diagonal": True}, {"dtype": "float64"}, {"basis": True}]
    changes += [{"d": d, "k": min(kept["k"], d)} for d in smaller]
    changes += [{"k": k} for k in range(1, kept["k"])]
    return (kept | change for change in changes if kept | change != kept)


def matrix(kept: dict[str, Any]) -> Tensor:
    """The symmetric matrix of a choice."""
    r, d = np.random.default_rng([8, kept["seed"]]), kept["d"]
    values = torch.from_numpy(np.sort(KINDS[kept["kind"]](r, d) * kept["scale"]))
    q = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=random.stream(kept["seed"], "basis")))[0]
    a = torch.diag(values) if kept["diagonal"] else (q * values) @ q.mT
    return ((a + a.mT) / 2).to(getattr(torch, kept["dtype"]))


def extremes(ascending: np.ndarray, k: int, which: str) -> np.ndarray:
    """The k extreme values at each asked end, as `lanczos` orders them."""
    if which == "LM":
        return ascending[np.argsort(-np.abs(ascending), kind="stable")[:k]]
    if which == "BE":
        both = min(2 * k, len(ascending))
        return np.concatenate([ascending[::-1][: (both + 1) // 2], ascending[: both // 2][::-1]])
    return ascending[::-1][:k] if which == "LA" else ascending[:k][::-1]


def _repeated(r: np.random.Generator, d: int) -> np.ndarray:
    values = [np.repeat(r.normal() * 3 ** r.normal(), r.integers(1, 11)) for _ in range(d)]
    return np.concatenate(values)[:d]


def _clustered(r: np.random.Generator, d: int) -> np.ndarray:
    return r.choice(r.normal(size=r.integers(2, 8)), d) * (1 + 10.0 ** r.uniform(-9, -2) * r.normal(size=d))


def _low_rank(r: np.random.Generator, d: int) -> np.ndarray:
    values = np.zeros(d)
    rank = r.integers(1, min(d, 12))
    values[:rank] = r.normal(size=rank)
    return np.abs(values) if r.random() < 0.5 else values


def _indefinite(r: np.random.Generator, d: int) -> np.ndarray:
    return r.normal(size=d)


def _outliers(r: np.random.Generator, d: int) -> np.ndarray:
    """As a network has them, each several times, above a bulk; at times negative ones."""
    copies = int(r.integers(1, 11))
    bulk = np.abs(r.normal(size=d)) * 10.0 ** r.uniform(-3, 0)
    values = np.concatenate([np.repeat(r.uniform(1, 20, size=r.integers(1, 6)), copies), bulk])[:d]
    if r.random() < 0.5:
        values[-min(copies, d // 3) :] = -r.uniform(0, 2)
    return values


def _geometric(r: np.random.Generator, d: int) -> np.ndarray:
    values = 2.0 ** -np.arange(d) * r.choice([-1, 1], size=d)
    copies = int(r.integers(2, 11))
    values[:copies] = values[0]
    if r.random() < 0.5:
        values[copies : 2 * copies] = -values[0]
    return values


KINDS = {
    "repeated": _repeated,
    "clustered": _clustered,
    "low rank": _low_rank,
    "indefinite": _indefinite,
    "outliers": _outliers,
    "geometric": _geometric,
}
