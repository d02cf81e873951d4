"""How often the toolkit's 95% intervals hold the truth, which is known in closed form.

Every row is an estimate, every column a number of draws, probes or seeds; a cell is the share of `--trials` independent
runs whose interval holds the truth. Its error is about 1% at 500 trials. The aim: 0.92 to 0.98.

Bowls: L(w) = (w - 1)' diag(values) (w - 1) / 2 at w = 1, so that average sharpness is rho^2 tr / 2 and
sigma = sqrt(2 rise / tr). Spectra: sixty equal eigenvalues, 1/k, 2^-k, and one alone, the most skewed that there is.
Samples: linear regression on x ~ N(0, I_4).
"""

from __future__ import annotations

import argparse
import math
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from timing import table  # isort: skip  (sets OMP_WAIT_POLICY before torch is loaded)

import numpy as np
import torch
from torch import nn

import landscape
from landscape import random, statistics
from landscape.curvature import stochastic

RHO = RISE = 0.1
SPECTRA = {
    "60 equal": np.ones(60),
    "1/k": 1 / np.arange(1.0, 61),
    "2^-k": 2.0 ** -np.arange(60),
    "one alone": np.eye(1, 60)[0],
}


class Bowl(nn.Module):
    """L(w) = (w - 1)' diag(values) (w - 1) / 2, whatever the batch."""

    def __init__(self, values: np.ndarray) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(len(values), dtype=torch.float64))
        self.values = torch.from_numpy(values)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The loss of every example."""
        return (0.5 * (self.values * (self.w - 1) ** 2).sum()).expand(len(x), 1)


def bowl(spectrum: str) -> landscape.Problem:
    """The bowl of a spectrum."""
    batch = (torch.zeros(2, 1).double(), torch.zeros(2))
    return landscape.Problem(Bowl(SPECTRA[spectrum]), lambda o, t: o.mean(), [batch], check=False)


def sample(trial: int) -> landscape.Problem:
    """128 fresh examples: the rise under noise has the expectation 4 rho^2 over samples and draws."""
    generator = torch.Generator().manual_seed(10_000 + trial)
    x, t = (torch.randn(128, n, generator=generator).double() for n in (4, 1))
    return landscape.Problem(nn.Linear(4, 1, bias=False).double(), nn.MSELoss(), [(x, t)], check=False)


def average(problem: landscape.Problem, draws: int, seed: int, subsets: int = 0) -> tuple[float, float]:
    """Interval of average sharpness."""
    low, high = landscape.average_sharpness(problem, rho=RHO, draws=draws, seed=seed, subsets=subsets).interval
    return float(low[0]), float(high[0])


def sigma(problem: landscape.Problem, draws: int, seed: int, subsets: int = 0) -> tuple[float, float]:
    """Interval of PAC-Bayes sigma."""
    result = landscape.pac_bayes_sigma(problem, rise=RISE, draws=draws, seed=seed, subsets=subsets, tol=0.02)
    return (math.nan, math.nan) if result.interval is None else tuple(map(float, result.interval))


def matrix(spectrum: str) -> torch.Tensor:
    """The spectrum in a random basis; "indefinite": a random symmetric matrix."""
    plain = torch.randn(60, 60, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    if spectrum == "indefinite":
        return plain + plain.T
    q = torch.linalg.qr(plain)[0]
    return q @ torch.diag(torch.from_numpy(SPECTRA[spectrum])) @ q.T


def trace(a: torch.Tensor, probes: int, seed: int, **options: Any) -> tuple[float, float]:
    """Interval of an estimated trace: value +- 1.96 stderr."""
    # Twice the dimension, so that no row is exact.
    padded = torch.block_diag(a, a)
    like = torch.empty(len(padded), dtype=a.dtype)
    result = stochastic.trace(
        lambda v: padded @ v, like, probes=probes, generator=random.stream(seed, "coverage"), **options
    )
    half = statistics.Z * result.stderr
    return result.value - half, result.value + half


def paired(n: int, seed: int) -> tuple[float, float]:
    """Two methods over seeds that share what a seed does; the truth is 0."""
    common, one, other = np.random.default_rng(seed).normal(size=(3, n))
    difference = statistics.paired(3 * common + one, 3 * common + other)
    return difference.low, difference.high


def accuracies(n: int, seed: int) -> tuple[float, float]:
    """Right or wrong of two networks on n examples, 6% of which they differ on; the truth is 0.02."""
    kind = np.random.default_rng(seed).choice(3, size=n, p=[0.94, 0.04, 0.02])
    difference = statistics.paired_examples((kind == 1).astype(float), (kind == 2).astype(float))
    return difference.low, difference.high


def covered(interval: Callable[[int], tuple[float, float]], truth: float, trials: int) -> float:
    """Share of the trials whose interval holds the truth; a missing one holds nothing."""
    tolerance = 1e-9 * abs(truth)
    ends = [interval(seed) for seed in range(trials)]
    return float(np.mean([low - tolerance <= truth <= high + tolerance for low, high in ends]))


def of_bowls(trials: int, draws: Sequence[int]) -> list[list[object]]:
    """Average sharpness and sigma over draws."""
    rows: list[list[object]] = []
    for spectrum, values in SPECTRA.items():
        problem, total = bowl(spectrum), float(values.sum())
        for name, made, truth in (
            ("average sharpness", average, RHO**2 * total / 2),
            ("PAC-Bayes sigma", sigma, math.sqrt(2 * RISE / total)),
        ):
            cells = [covered(lambda s, n=n, f=made, p=problem: f(p, n, s), truth, trials) for n in draws]
            rows.append([name, spectrum, *(f"{c:.3f}" for c in cells)])
    return rows


def of_samples(trials: int, draws: Sequence[int]) -> list[list[object]]:
    """The same with five subsets, over fresh samples and fresh draws."""
    rows: list[list[object]] = []
    for name, made, truth in (
        ("average sharpness", average, 4 * RHO**2),
        ("PAC-Bayes sigma", sigma, math.sqrt(RISE / 4)),
    ):
        cells = [covered(lambda s, n=n, f=made: f(sample(s), n, s, 5), truth, trials) for n in draws]
        rows.append([name, *(f"{c:.3f}" for c in cells)])
    return rows


def of_traces(trials: int, probes: Sequence[int]) -> list[list[object]]:
    """Traces of 120 x 120 matrices; the last column stops at a relative error of 0.2."""
    rows: list[list[object]] = []
    for spectrum in ("60 equal", "1/k", "2^-k", "one alone", "indefinite"):
        a = matrix(spectrum)
        for name, sketch in (("Hutch++", True), ("Hutchinson", False)):
            truth = 2 * float(a.trace())
            cells = [covered(lambda s, n=n, k=sketch, a=a: trace(a, n, s, sketch=k), truth, trials) for n in probes]
            stopped = covered(lambda s, k=sketch, a=a: trace(a, 119, s, sketch=k, target=0.2), truth, trials)
            rows.append([name, spectrum, *(f"{c:.3f}" for c in (*cells, stopped))])
    return rows


def of_pairs(trials: int, sizes: Sequence[int]) -> list[list[object]]:
    """Paired differences over seeds and over examples."""
    rows: list[list[object]] = []
    for name, made, truth, scale in (("methods over n seeds", paired, 0.0, 1), ("accuracies", accuracies, 0.02, 20)):
        cells = [covered(lambda s, n=n, f=made, k=scale: f(k * n, s), truth, trials) for n in sizes]
        rows.append([name if scale == 1 else f"{name} on {scale} n examples", *(f"{c:.3f}" for c in cells)])
    return rows


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--trials", type=int, default=500)
    trials = parser.parse_args().trials
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    draws, probes, sizes = (4, 6, 10, 20, 50, 100), (4, 6, 10, 20, 30), (3, 5, 10, 20)
    parts = (
        ("Over the draws", of_bowls(trials, draws), ["estimate", "spectrum", *(f"{n} draws" for n in draws)]),
        ("Over samples and draws", of_samples(trials, draws[:4]), ["estimate", *(f"{n} draws" for n in draws[:4])]),
        (
            "Traces, value +- 1.96 stderr",
            of_traces(trials, probes),
            ["estimate", "spectrum, twice", *(f"{n} probes" for n in probes), "target 0.2"],
        ),
        ("Paired differences", of_pairs(4 * trials, sizes), ["difference", *(f"n = {n}" for n in sizes)]),
    )
    for title, rows, header in parts:
        print(f"## {title}\n\n{table(rows, header)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
