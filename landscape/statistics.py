"""Estimates and their 95% intervals: Student's t, of few draws, Wilson's, the bootstrap; paired differences."""

from __future__ import annotations

import functools
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
        kind: how the interval was made: "t", "paired t", "against each", "t of ln", "Agresti-Min", "Wilson",
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


def interval_of_rises(values: np.ndarray) -> np.ndarray:
    """Interval of the mean, (bound, ...), of independent rises of a loss (n, ...), also for few of them.

    The rise under Gaussian noise is a weighted sum of chi-squared variables, skewed where few directions are steep:
    Student's t then holds the mean of 5 draws in 82%. The most skewed is one steep direction, alone or above a flat
    bulk, which only adds a constant that no few draws can tell. The end away from 0 is therefore the outer one of
    Student's and of what that law needs; the end towards 0, which it leaves too wide, is Student's. At a saddle the
    steep direction may be one of those that lower the loss: where the rises themselves are skewed towards 0 (three or
    more tell), that end is the law's too.
    """
    n = len(values)
    with np.errstate(invalid="ignore", divide="ignore"):  # an infinite rise has no variance: nan says so
        mean, error = values.mean(axis=0), standard_error(values)
        student, law = _student(n) * error, max(_student(n), _skewed(n)) * error
        skewness = (((values - mean) / error) ** 3).sum(axis=0)
    near = np.where((n > 2) & (np.sign(mean) * skewness < 0), law, student)
    return np.stack([mean - np.where(mean < 0, law, near), mean + np.where(mean < 0, near, law)])


@functools.lru_cache
def _skewed(n: int, draws: int = 50_000) -> float:
    """What Student's quantile is for chi-squared variables of one degree of freedom, which almost never miss below.

    95% of (1 - mean) sqrt(n) / s are below it: 54 for n = 2, 7.4 for 5, 2.3 for 50; Student's is larger from 200 on.
    """
    if n >= 200:
        return 0.0
    rises = np.random.default_rng(0).chisquare(1, size=(draws, n))
    return float(np.quantile((1 - rises.mean(axis=1)) / standard_error(rises, 1), LEVEL))


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


def combined(center: np.ndarray, *intervals: np.ndarray, counted_twice: np.ndarray | float = 0.0) -> np.ndarray:
    """Interval, (bound, ...), of a value with several errors, each with an interval of its own.

    Their distances from the center add in quadrature, upwards and downwards apart (Zou and Donner 2008), less what both
    count: `counted_twice` is the variance of it (of `interaction`).
    """
    squares = np.stack([(bounds - center) ** 2 for bounds in intervals])
    low, high = np.sqrt(np.maximum(squares.sum(axis=0) - Z**2 * counted_twice, squares.max(axis=0)))
    return np.stack([center - low, center + high])


def interaction(values: np.ndarray) -> np.ndarray:
    """Variance of the mean of values (a, b, ...) that stands in the spread over a and in that over b alike.

    The same draws b on every part a of the examples: what a draw does to one part and not to the others. Of the two-way
    analysis of variance, Var(mean) = (MS_a + MS_b - MS_ab) / (a b), this is MS_ab / (a b).
    """
    a, b = values.shape[:2]
    residuals = values - values.mean(axis=0) - values.mean(axis=1, keepdims=True) + values.mean(axis=(0, 1))
    return (residuals**2).sum(axis=(0, 1)) / ((a - 1) * (b - 1) * a * b)


def allowance(degrees: np.ndarray) -> np.ndarray:
    """By how much a normal interval has to be widened for a variance known with these degrees of freedom."""
    from scipy import stats

    return np.asarray(stats.t.ppf((1 + LEVEL) / 2, degrees) / Z)


def _student(n: int, tests: int = 1) -> float:
    """Quantile of Student's t with n - 1 degrees of freedom; Bonferroni's of several tests."""
    from scipy import stats

    return float(stats.t.ppf(1 - (1 - LEVEL) / 2 / tests, n - 1))


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


def against_each(one: Sequence[float] | np.ndarray, rivals: Sequence[Sequence[float] | np.ndarray]) -> Estimate:
    """The largest of the mean differences one - rival, paired by seed: below 0 where `one` is lower than every rival.

    The upper end is the largest of the rivals' own upper ends: that `one` is below all of them needs each to show it,
    at the plain level (Berger 1982). The lower end is the largest of the lower ends, which any single rival can lift:
    these stand at Bonferroni's level. (The smallest rival of each seed would be lower than the lower of the two means:
    of three equal methods "not the lowest" came out in 11%.)

    Args:
        one: (seeds,).
        rivals: (rivals, seeds).
    """
    differences = np.asarray(one, dtype=np.float64) - np.asarray(rivals, dtype=np.float64)
    k, n = differences.shape
    means = differences.mean(axis=1)
    if n < 2 or not np.isfinite(differences).all():
        return Estimate(float(means.max()), math.nan, math.nan, n, "against each")
    error = standard_error(differences, 1)
    low, high = (means - _student(n, k) * error).max(), (means + _student(n) * error).max()
    return Estimate(float(means.max()), float(low), float(high), n, "against each")


def paired_examples(a: np.ndarray, b: np.ndarray) -> Estimate:
    """Mean of a - b over examples, paired: Student's t; of zeros and ones (right or wrong) that of Agresti and Min.

    Few examples that only one of two networks gets right leave a difference of shares without a usable spread: half an
    example is added to each of the four outcomes (Agresti and Min 2005).
    """
    difference = np.asarray(a, dtype=np.float64) - b
    if not np.isin([a, b], (0, 1)).all():
        return paired(a, b)
    n = len(difference)
    center, squares = difference.sum() / (n + 2), ((difference**2).sum() + 1) / (n + 2)
    half = Z * math.sqrt((squares - center**2) / (n + 2))
    return Estimate(float(difference.mean()), center - half, center + half, n, "Agresti-Min")


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


def kendall(x: np.ndarray, y: np.ndarray) -> float:
    """Kendall's tau (b), with ties: sum of sign products over all pairs / root of the numbers of untied pairs.

    From the definition: n^2 is small here, and a thousand bootstrap draws cost seconds instead of minutes.
    """
    return _cosine(_signs(x), _signs(y))


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's rho: the correlation of the ranks, ties sharing theirs.

    A value's rank, counted from the mean rank, is half of the sum of its signs against all others.
    """
    return _cosine(_signs(x).sum(axis=1), _signs(y).sum(axis=1))


def _signs(v: np.ndarray) -> np.ndarray:
    v = np.asarray(v, dtype=np.float64)
    # nan has no rank: its sign is nan, and so is everything made of it.
    with np.errstate(invalid="ignore"):
        return np.sign(v[:, None] - v[None, :])


def _cosine(x: np.ndarray, y: np.ndarray) -> float:
    norm = np.sqrt((x * x).sum() * (y * y).sum())
    return float((x * y).sum() / norm) if norm > 0 else float("nan")


def _expanded_tail(n: int) -> float:
    """Share of the draws beyond each end of the interval.

    Percentiles of n resampled rows are too narrow as a normal interval with the biased variance is: both factors,
    sqrt(n / (n - 1)) and Student's t for the normal quantile, are put into the level.
    """
    from scipy import stats

    return 0.0 if n < 2 else float(stats.norm.cdf(-math.sqrt(n / (n - 1)) * _student(n)))


def _around(center: float, half: float, n: int, kind: str) -> Estimate:
    return Estimate(center, center - half, center + half, n, kind)
