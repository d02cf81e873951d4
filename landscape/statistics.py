"""Estimates and their 95% intervals: Student's t, normal, Wilson's, the bootstrap; means and paired differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

LEVEL = 0.95
"""Coverage of every interval."""
Z = 1.959963984540054
"""The normal distribution's quantile of a two-sided interval of that level."""
MOST_DROPPED = 0.05
"""Share of bootstrap draws that may give no number: leaving out more would move the interval's ends."""


@dataclass(frozen=True)
class Estimate:
    """A number with its 95% interval.

    Attributes:
        value: the point estimate.
        low: lower end.
        high: upper end.
        n: seeds (or other independent draws, clusters of a cluster bootstrap) behind it.
        kind: how the interval was made: "t", "paired t", "t of ln", "normal", "Wilson",
            "bootstrap", "cluster bootstrap", "exact".
        draws: of a bootstrap.
        dropped: draws that gave no finite number and were left out; more than 5% leave no interval.
    """

    value: float
    low: float
    high: float
    n: int
    kind: str
    draws: int = 0
    dropped: int = 0


# -- of many numbers at once -----------------------------------------------------------------------------------------


def standard_error(values: np.ndarray, axis: int = 0) -> np.ndarray:
    """Standard error of the mean over `axis`: s / sqrt(n), s with n - 1 degrees of freedom."""
    return np.std(values, axis, ddof=1) / np.sqrt(np.shape(values)[axis])


def half_width(values: np.ndarray, axis: int = 0) -> np.ndarray:
    """Half of Student's t interval of the mean over `axis`: t s / sqrt(n)."""
    return _student(np.shape(values)[axis]) * standard_error(values, axis)


def interval_around(center: np.ndarray, values: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Student's t interval around `center`, (bound, ...), from independent values (k, ...): center +- t s / sqrt(k).

    The center is what all examples together give, the values are those of their parts.

    Args:
        center: (...), in the middle of the interval.
        values: (k, ...).
        weights: (k,) of the values in their variance; equal ones by default.
    """
    k = len(values)
    if weights is None:
        half = half_width(values)
    else:
        weights = weights / weights.sum()
        variance = np.tensordot(weights, (values - np.tensordot(weights, values, 1)) ** 2, 1) * k / (k - 1)
        half = _student(k) * np.sqrt(variance / k)
    return np.stack([center - half, center + half])


def _student(n: int) -> float:
    """Quantile of Student's t with n - 1 degrees of freedom."""
    from scipy import stats

    return float(stats.t.ppf((1 + LEVEL) / 2, n - 1))


# -- estimates -------------------------------------------------------------------------------------------------------


def mean(values: Sequence[float] | np.ndarray, kind: str = "t") -> Estimate:
    """Mean over seeds with Student's t interval; no interval (nan) for fewer than two values."""
    x = np.asarray(values, dtype=np.float64).ravel()
    if len(x) < 2 or not np.isfinite(x).all():
        value = float(x.mean()) if len(x) else math.nan
        return Estimate(value, math.nan, math.nan, len(x), kind)
    return _around(float(x.mean()), float(half_width(x)), len(x), kind)


def paired(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> Estimate:
    """Mean of a - b, paired by seed."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"{a.shape} and {b.shape} cannot be paired")
    return mean(a - b, "paired t")


def paired_examples(a: np.ndarray, b: np.ndarray) -> Estimate:
    """Mean of a - b over many examples, paired, with the normal interval: difference +- 1.96 standard errors."""
    difference = a - b
    return _around(float(difference.mean()), Z * float(standard_error(difference)), len(difference), "normal")


def geometric_mean(values: Sequence[float] | np.ndarray) -> Estimate:
    """Geometric mean of positive values, Student's t interval of the logarithm: for spreads and ratios."""
    x = np.asarray(values, dtype=np.float64)
    e = mean(np.log(np.where(x > 0, x, np.nan)), "t of ln")
    return Estimate(math.exp(e.value), math.exp(e.low), math.exp(e.high), e.n, e.kind)


def exact(value: float) -> Estimate:
    """A quantity without sampling error."""
    return Estimate(float(value), float(value), float(value), 1, "exact")


def share(p: float, n: int) -> Estimate:
    """A share p of n examples with Wilson's interval (1927): it does not shrink to nothing at 0 or 1."""
    middle = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    return Estimate(p, middle - half, middle + half, n, "Wilson")


def bootstrap(
    statistic: Callable[..., float],
    *columns: np.ndarray,
    clusters: Sequence[Any] | np.ndarray | None = None,
    seed: int = 0,
    draws: int = 2000,
    expanded: bool = True,
) -> Estimate:
    """Percentile interval of statistic(*columns) over resampled rows, or over whole clusters of rows.

    Rows that share something (a method's seeds) are no independent observations: with `clusters`, whole clusters are
    drawn with replacement and every one keeps all of its rows (Field and Welsh 2007). n is then the number of clusters.

    Args:
        statistic: of the columns; nan or infinite where it cannot be computed.
        columns: one entry a row each.
        clusters: (rows,) label of each row's cluster; None: every row is one of its own.
        seed: of the draws.
        draws: resamples.
        expanded: widen the percentiles to what few rows need (Hesterberg 2015, arXiv 1411.5279); False takes the plain
            2.5% and 97.5%.

    Returns:
        The estimate; without interval (nan) where more than 5% of the draws gave no finite number.
    """
    rows = len(columns[0])
    labels = np.arange(rows) if clusters is None else np.unique(np.asarray(clusters), return_inverse=True)[1]
    if len(labels) != rows:
        raise ValueError(f"{len(labels)} labels of clusters for {rows} rows")
    members = [np.flatnonzero(labels == i) for i in range(int(labels.max()) + 1)]
    generator = np.random.default_rng(seed)
    picks = (
        np.concatenate([members[i] for i in generator.integers(len(members), size=len(members))]) for _ in range(draws)
    )
    values = np.array([statistic(*(c[pick] for c in columns)) for pick in picks], dtype=np.float64)
    finite = values[np.isfinite(values)]
    dropped = draws - len(finite)
    kind = "bootstrap" if clusters is None else "cluster bootstrap"
    low = high = math.nan
    if dropped <= MOST_DROPPED * draws:
        tail = _expanded_tail(len(members)) if expanded else (1 - LEVEL) / 2
        low, high = (float(q) for q in np.quantile(finite, [tail, 1 - tail]))
    return Estimate(float(statistic(*columns)), low, high, len(members), kind, draws, dropped)


def _expanded_tail(n: int) -> float:
    """Share of the draws beyond each end of the interval.

    Percentiles of n resampled rows are too narrow as a normal interval with the biased variance is: both factors,
    sqrt(n / (n - 1)) and Student's t for the normal quantile, are put into the level.
    """
    from scipy import stats

    return 0.0 if n < 2 else float(stats.norm.cdf(-math.sqrt(n / (n - 1)) * _student(n)))


def _around(center: float, half: float, n: int, kind: str) -> Estimate:
    return Estimate(center, center - half, center + half, n, kind)
