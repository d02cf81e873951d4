"""Intervals of many numbers at once, of shares and of ratios; see test_study for estimates and the bootstrap."""

import math

import numpy as np
import pytest
from scipy import stats

from landscape import statistics

VALUES = np.random.default_rng(0).normal(size=(7, 3))


def test_half_widths_are_students():
    oracle = [stats.ttest_1samp(column, 0).confidence_interval(0.95) for column in VALUES.T]
    np.testing.assert_allclose(statistics.half_width(VALUES), [(o.high - o.low) / 2 for o in oracle], rtol=1e-12)
    np.testing.assert_allclose(statistics.half_width(VALUES.T, axis=1), statistics.half_width(VALUES), rtol=1e-12)
    np.testing.assert_allclose(statistics.standard_error(VALUES), stats.sem(VALUES), rtol=1e-12)
    one = statistics.mean(VALUES[:, 0])
    assert (one.low, one.high) == pytest.approx((oracle[0].low, oracle[0].high), rel=1e-12)


def test_an_interval_around_another_center():
    center = np.array([1.0, 2.0, 3.0])
    low, high = statistics.interval_around(center, VALUES)
    np.testing.assert_allclose((low + high) / 2, center, rtol=1e-12)
    np.testing.assert_allclose((high - low) / 2, statistics.half_width(VALUES), rtol=1e-12)


def test_weights_count_in_the_spread():
    """A value of twice the weight counts twice in the biased variance; correction and t see the number of values."""
    weights, k = np.array([2.0, 1, 1, 1, 1, 1, 1]), len(VALUES)
    low, high = statistics.interval_around(np.zeros(3), VALUES, weights)
    biased = np.repeat(VALUES, weights.astype(int), axis=0).var(axis=0)
    expected = stats.t.ppf(0.975, k - 1) * np.sqrt(biased / (k - 1))
    np.testing.assert_allclose((high - low) / 2, expected, rtol=1e-12)
    even = statistics.interval_around(np.zeros(3), VALUES, np.full(k, 5.0))
    np.testing.assert_allclose(even, statistics.interval_around(np.zeros(3), VALUES), rtol=1e-12)


def test_paired_examples():
    a, b = np.random.default_rng(1).normal(size=(2, 500))
    e = statistics.paired_examples(a, b)
    assert e.value == pytest.approx((a - b).mean(), rel=1e-12)
    assert e.high - e.low == pytest.approx(2 * stats.norm.ppf(0.975) * stats.sem(a - b), rel=1e-12)


@pytest.mark.parametrize("right", [0, 37, 40])
def test_shares_have_wilsons_interval(right):
    e = statistics.share(right / 40, 40)
    oracle = stats.binomtest(right, 40).proportion_ci(0.95, method="wilson")
    assert (e.low, e.high) == pytest.approx((oracle.low, oracle.high), rel=1e-9, abs=1e-12)


def test_plain_and_expanded_percentiles():
    x = np.random.default_rng(2).normal(size=9)
    plain, expanded = (statistics.bootstrap(np.median, x, draws=500, expanded=e) for e in (False, True))
    picks = np.random.default_rng(0).integers(9, size=(500, 9))
    assert (plain.low, plain.high) == tuple(np.quantile(np.median(x[picks], axis=1), [0.025, 0.975]))
    assert expanded.low <= plain.low < plain.high <= expanded.high
    assert math.isfinite(expanded.low)
