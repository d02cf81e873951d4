"""Adversarial spectra: clustered, repeated up to ten times, of low rank, indefinite, of every scale and both dtypes."""

from dataclasses import dataclass

import numpy as np
import torch

from landscape import random
from landscape.curvature import krylov

TOL = 1e-3


@dataclass(frozen=True)
class Spectrum:
    """A symmetric matrix, what is asked of it, and the right answer by a dense solver in float64."""

    seed: int
    kind: str
    matrix: torch.Tensor
    k: int
    which: str
    right: np.ndarray

    def solved(self):
        """What `lanczos` finds by default."""
        return krylov.lanczos(
            lambda v: self.matrix @ v,
            self.matrix[0],
            self.k,
            which=self.which,
            tol=TOL,
            generator=random.stream(self.seed, "spectrum"),
        )

    def wrong(self, found):
        """Whether the answer is called converged and is off by more than the tolerance (or the stated rounding)."""
        values, right = (np.abs(x) if self.which == "LM" else x for x in (found.values, self.right))
        error = np.abs(values - right)
        # 1.01: a value within tol of the last one that is wanted may stand in for it.
        return found.converged and bool(np.any(error > np.maximum(1.01 * TOL * np.abs(right), found.rounding)))


def _repeated(r, d):
    values = np.concatenate([[r.normal() * 3 ** r.normal()] * r.integers(1, 11) for _ in range(d)])
    return values[:d]


def _clustered(r, d):
    return r.choice(r.normal(size=r.integers(2, 8)), d) * (1 + 10.0 ** r.uniform(-9, -2) * r.normal(size=d))


def _low_rank(r, d):
    values = np.zeros(d)
    rank = r.integers(1, min(d, 12))
    values[:rank] = r.normal(size=rank)
    return np.abs(values) if r.random() < 0.5 else values


def _indefinite(r, d):
    return r.normal(size=d)


def _network(r, d):
    """Outliers, each several times, above a bulk; at times negative ones."""
    copies = r.integers(1, 11)
    bulk = np.abs(r.normal(size=d)) * 10.0 ** r.uniform(-3, 0)
    values = np.concatenate([np.repeat(r.uniform(1, 20, size=r.integers(1, 6)), copies), bulk])[:d]
    if r.random() < 0.5:
        values[-min(copies, d // 3) :] = -r.uniform(0, 2)
    return values


def _geometric(r, d):
    values = 2.0 ** -np.arange(d) * r.choice([-1, 1], size=d)
    copies = r.integers(2, 11)
    values[:copies] = values[0]
    if r.random() < 0.5:
        values[copies : 2 * copies] = -values[0]
    return values


KINDS = {
    "repeated": _repeated,
    "clustered": _clustered,
    "low rank": _low_rank,
    "indefinite": _indefinite,
    "network": _network,
    "geometric": _geometric,
}


def spectrum(seed):
    """The spectrum of a seed."""
    r = np.random.default_rng([7, seed])
    d = int(r.choice([5, 12, 30, 60, 120, 200]))
    kind = str(r.choice(list(KINDS)))
    values = torch.from_numpy(np.sort(KINDS[kind](r, d) * 10.0 ** r.uniform(-12, 12)))
    k, which = int(min(r.integers(1, 11), d)), str(r.choice(krylov.ENDS))
    q = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=random.stream(seed, "basis")))[0]
    matrix = torch.diag(values) if r.random() < 0.3 else (q * values) @ q.mT
    matrix = ((matrix + matrix.mT) / 2).to([torch.float32, torch.float64][r.integers(2)])
    exact = np.linalg.eigvalsh(matrix.double().numpy())
    return Spectrum(seed, kind, matrix, k, which, extremes(exact, k, which))


def extremes(ascending, k, which):
    """The k extreme values at each asked end, as `lanczos` orders them."""
    if which == "LM":
        return ascending[np.argsort(-np.abs(ascending), kind="stable")[:k]]
    upper, lower = ascending[::-1][:k], ascending[:k][::-1]
    if which == "BE":
        both = min(2 * k, len(ascending))
        return np.concatenate([ascending[::-1][: (both + 1) // 2], ascending[: both // 2][::-1]])
    return upper if which == "LA" else lower
