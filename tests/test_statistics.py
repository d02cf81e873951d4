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
    e, oracle = statistics.paired_examples(a, b), stats.ttest_rel(a, b).confidence_interval(0.95)
    assert e.value == pytest.approx((a - b).mean(), rel=1e-12)
    assert (e.low, e.high) == pytest.approx((oracle.low, oracle.high), rel=1e-12)


@pytest.mark.parametrize("discordant", [0.0, 0.02, 0.2])
def test_differences_of_accuracies_cover(discordant):
    """Also where the two networks hardly ever differ, and the spread of the differences is often 0."""
    generator, covered = np.random.default_rng(0), 0
    for _ in range(1000):
        kind = generator.choice(3, size=100, p=[1 - discordant, 0.75 * discordant, 0.25 * discordant])
        e = statistics.paired_examples((kind == 1).astype(float), (kind == 2).astype(float))
        covered += e.low <= 0.5 * discordant <= e.high
        assert e.high > e.low
    assert covered >= 940


SPECTRA = {"one": np.ones(1), "three": np.ones(3), "decaying": 2.0 ** -np.arange(10), "sixty": np.ones(60)}


@pytest.mark.parametrize("n", [2, 5, 25])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_intervals_of_rises_cover(spectrum, n):
    """Weighted chi-squared rises of a bowl: 92 to 98% within 3 errors of 600 trials; Student's has 82% of `one`."""
    values = (np.random.default_rng(n).normal(size=(n, 600, len(SPECTRA[spectrum]))) ** 2) @ SPECTRA[spectrum]
    low, high = statistics.interval_of_rises(values)
    covered = ((low <= SPECTRA[spectrum].sum()) & (SPECTRA[spectrum].sum() <= high)).mean()
    assert 0.92 - 0.033 < covered < 0.98 + 0.017


@pytest.mark.parametrize(("n", "least"), [(5, 0.94), (10, 0.94), (25, 0.92)])
@pytest.mark.parametrize("bulk", [np.full(60, 0.03), np.full(200, 0.01)])
@pytest.mark.parametrize("sign", [1, -1])
def test_intervals_of_a_steep_direction_above_a_bulk_cover(n, least, bulk, sign):
    """The bulk hides the skewness: an interval from the scatter of the logarithms had 0.89 to 0.92 of them."""
    spectrum = sign * np.concatenate([[1.0], bulk])
    values = (np.random.default_rng(n).normal(size=(n, 2000, len(spectrum))) ** 2) @ spectrum
    low, high = statistics.interval_of_rises(values)
    assert np.mean((low <= spectrum.sum()) & (spectrum.sum() <= high)) > least


@pytest.mark.parametrize("n", [5, 10, 25])
@pytest.mark.parametrize(("steep", "bulk"), [(-58.0, np.ones(60)), (-30.0, np.ones(60)), (-1.0, np.full(1, 2.0))])
def test_intervals_of_rises_cover_at_a_saddle(n, steep, bulk):
    """The steep direction lowers the loss that all others raise: Student's end towards 0 held 0.84 of the first."""
    spectrum = np.concatenate([[steep], bulk])
    values = (np.random.default_rng(n).normal(size=(n, 2000, len(spectrum))) ** 2) @ spectrum
    for sign in (1, -1):
        low, high = statistics.interval_of_rises(sign * values)
        assert np.mean((low <= sign * spectrum.sum()) & (sign * spectrum.sum() <= high)) > 0.905


@pytest.mark.parametrize("sign", [1, -1])
def test_towards_zero_the_interval_of_rises_is_students(sign):
    values = sign * (VALUES**2)
    student = [stats.ttest_1samp(column, 0).confidence_interval(0.95) for column in values.T]
    near, far = statistics.interval_of_rises(values)[::sign]
    np.testing.assert_allclose(near, [o.low if sign > 0 else o.high for o in student], rtol=1e-12)
    assert np.all(sign * (far - values.mean(0)) > 1.2 * sign * (values.mean(0) - near))


def test_many_rises_have_students_interval():
    values = np.random.default_rng(0).normal(size=200) ** 2
    oracle = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert tuple(statistics.interval_of_rises(values)) == pytest.approx((oracle.low, oracle.high), rel=1e-12)


def test_what_two_spreads_share_counts_once():
    """Draws that do something else to every part of the examples, and nothing else: the error is that of their mean."""
    table = np.random.default_rng(0).normal(size=(40, 50))
    twice = statistics.interaction(table)
    assert twice == pytest.approx(1 / table.size, rel=0.1)
    center = table.mean()
    spreads = [center + np.array([-h, h]) for h in (statistics.half_width(table.mean(axis=i)) for i in (0, 1))]
    low, high = statistics.combined(center, *spreads, counted_twice=twice)
    assert high - low == pytest.approx(2 * 1.96 / math.sqrt(table.size), rel=0.2)
    apart = statistics.combined(center, *spreads)
    assert apart[1] - apart[0] > 1.3 * (high - low)


@pytest.mark.parametrize(("lead", "most"), [(0.0, 0.05), (0.4, 0.02)])
def test_the_lowest_is_tested_against_each_rival(lead, most):
    """Of 2,000 studies of three methods; against the smaller rival of each seed, 11% of equal ones were refuted."""
    x = np.random.default_rng(0).normal(size=(2000, 3, 5))
    found = [statistics.against_each(s[0] - lead, s[1:]) for s in x]
    assert np.mean([e.low > 0 for e in found]) <= most
    assert np.mean([e.high < 0 for e in found]) <= 0.025 if not lead else True
    clear = statistics.against_each(x[0, 0] - 20, x[0, 1:])
    assert clear.high < 0
    assert math.isnan(statistics.against_each([1.0], [[2.0]]).low)


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
