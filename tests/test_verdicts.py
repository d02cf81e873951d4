"""Verdicts follow their rule, with intervals that cover."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from figures.study import verdict
from figures.study.verdict import Claim
from landscape import statistics
from landscape.statistics import Estimate


def claim(low, high, n=5, kind="t", **region):
    return Claim("c", "q", "-", Estimate((low + high) / 2, low, high, n, kind), **region)


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (claim(0.1, 0.4, above=0), "supported"),
        (claim(-0.4, -0.1, above=0), "not supported"),
        (claim(-0.1, 0.4, above=0), "undecided"),
        (claim(-0.1, 0.1, above=-1, below=1), "supported"),
        (claim(1.5, 2.0, above=-1, below=1), "not supported"),
        (claim(0.5, 2.0, above=-1, below=1), "undecided"),
        (claim(0.0, 0.0, above=0), "undecided"),
        (claim(-0.1, 0.0, above=0), "not supported"),
        (claim(0.0, 0.0, n=1, kind="exact", above=0), "not supported"),
        (claim(0.1, 0.4, n=2, above=0), "undecided"),
        (claim(0.2, 0.2, n=1, kind="exact", above=0), "supported"),
        (claim(math.nan, math.nan, above=0), "undecided"),
    ],
)
def test_the_rule(made, expected):
    assert made.verdict == expected


def test_a_claim_without_region_is_a_mistake():
    with pytest.raises(ValueError, match="region"):
        _ = claim(0, 1).verdict


def test_intervals_are_students():
    a, b = np.array([1.0, 2.0, 4.0, 3.5]), np.array([0.5, 1.0, 2.0, 3.0])
    found, oracle = statistics.paired(a, b), stats.ttest_rel(a, b).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((oracle.low, oracle.high), rel=1e-12)
    assert found.value == pytest.approx(1.0)
    assert found.kind == "paired t"
    assert math.isnan(statistics.mean([1.0]).low)
    assert statistics.exact(2.0) == Estimate(2.0, 2.0, 2.0, 1, "exact")


def test_spreads_have_positive_intervals():
    x = np.array([0.01, 0.1, 2.0])
    found, oracle = statistics.geometric_mean(x), stats.ttest_1samp(np.log(x), 0).confidence_interval(0.95)
    assert found.value == pytest.approx(0.002 ** (1 / 3), rel=1e-12)
    assert (found.low, found.high) == pytest.approx((math.exp(oracle.low), math.exp(oracle.high)), rel=1e-12)
    assert math.isnan(statistics.geometric_mean([0.0, 1.0, 2.0]).low)


def test_the_bootstrap_covers():
    """The 95% interval of a mean holds the truth in 95 of 100 samples: within 4 standard errors of that."""
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        found = statistics.bootstrap(np.mean, generator.normal(size=40), draws=400)
        hits += found.low < 0 < found.high
    assert abs(hits / 200 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 200)


def test_the_bootstrap_has_students_width():
    """For a mean the expanded percentiles give Student's interval, also of few rows."""
    x = np.random.default_rng(1).normal(size=12)
    found = statistics.bootstrap(np.mean, x, draws=20000)
    oracle = stats.ttest_1samp(x, 0).confidence_interval(0.95)
    # The bootstrap distribution of 12 rows is not exactly normal, and its 1.3% quantile is of 20,000 draws.
    assert found.high - found.low == pytest.approx(oracle.high - oracle.low, rel=0.1)


def test_seeds_of_one_method_are_no_independent_rows():
    """Twenty methods, three seeds each that resemble each other: only whole methods give an interval that covers."""
    generator = np.random.default_rng(0)
    method = np.repeat(np.arange(20), 3)
    hits = {"rows": 0, "methods": 0}
    for _ in range(200):
        x = generator.normal(size=20)[method] + 0.2 * generator.normal(size=60)
        for kind, clusters in (("rows", None), ("methods", method)):
            found = statistics.bootstrap(np.mean, x, clusters=clusters, draws=150)
            hits[kind] += found.low < 0 < found.high
    error = math.sqrt(0.95 * 0.05 / 200)
    assert hits["methods"] / 200 > 0.95 - 4 * error
    assert hits["rows"] / 200 < 0.95 - 8 * error, "independent rows would be believed"


def test_clusters_keep_their_rows_together():
    seen = []

    def statistic(values):
        seen.append(sorted(values))
        return float(np.mean(values))

    found = statistics.bootstrap(statistic, np.array([1.0, 2.0, 10.0, 20.0, 30.0]), clusters=["a", "a", "b", "b", "b"])
    assert {tuple(v) for v in seen} == {
        (1, 1, 2, 2), (1, 2, 10, 20, 30), (10, 10, 20, 20, 30, 30),
    }  # fmt: skip
    assert (found.n, found.kind, found.dropped) == (2, "cluster bootstrap", 0)
    assert Claim("c", "q", "-", found, above=0).verdict == "undecided", "two clusters decide nothing"
    with pytest.raises(ValueError, match="2 labels"):
        statistics.bootstrap(np.mean, np.ones(3), clusters=[0, 1])


def test_draws_without_a_number_are_counted():
    """A statistic that fails without the one row of 50 (36% of the draws), and one that fails without two others."""
    x = np.arange(50.0)

    def needs(*rows):
        return lambda v: float(v.mean()) if any(r in v for r in rows) else math.nan

    many = statistics.bootstrap(needs(7), x, draws=1000)
    assert many.value == pytest.approx(24.5)
    assert 300 < many.dropped < 430
    assert math.isnan(many.low)
    assert Claim("c", "q", "-", many, above=0).verdict == "undecided"
    few = statistics.bootstrap(needs(1, 2, 3, 4), x, draws=1000)
    assert 0 < few.dropped <= 50
    assert few.low < 24.5 < few.high
    assert Claim("c", "q", "-", few, above=0).verdict == "supported"


def test_the_table_says_what_was_dropped(tmp_path):
    facts = {"title": "A", "preset": "quick", "source": "paper"}
    lost = Estimate(1.0, math.nan, math.nan, 9, "bootstrap", 1000, 300)
    kept = Estimate(1.0, 0.5, 1.5, 9, "bootstrap", 1000, 30)
    verdict.write(tmp_path / "x", [Claim("c", "q", "-", e, above=0) for e in (lost, kept)], facts)
    text = (tmp_path / "x-verdict.md").read_text()
    assert "300 of 1000 bootstrap draws gave no number: too many for an interval." in text
    assert "30 of 1000 bootstrap draws gave no number: left out." in text
    assert json.loads((tmp_path / "x-verdict.json").read_text())["claims"][1]["ours"]["dropped"] == 30


def test_rounding_is_no_value(tmp_path):
    facts = {"title": "A", "preset": "quick", "source": "-"}
    made = Claim("c", "q", "-", Estimate(2.8e-15, -0.3, 0.3, 5, "t"), above=0)
    verdict.write(tmp_path / "f", [made], facts)
    assert "| 0 [-0.3, 0.3] |" in (tmp_path / "f-verdict.md").read_text()


def test_verdicts_are_written_and_collected(tmp_path):
    facts = {"title": "A | title", "preset": "quick", "source": "paper, Figure 1"}
    verdict.write(tmp_path / "b-fig", [claim(0.1, 0.4, above=0), claim(-0.1, 0.4, above=0)], facts)
    verdict.write(tmp_path / "a-fig", [claim(math.nan, math.nan, above=0)], facts)
    entry = json.loads((tmp_path / "b-fig-verdict.json").read_text())
    assert [c["verdict"] for c in entry["claims"]] == ["supported", "undecided"]
    assert (entry["claims"][0]["ours"]["low"], entry["claims"][0]["above"]) == (0.1, 0)
    text = verdict.collect(tmp_path).read_text()
    assert "3 claims: 1 supported, 0 not supported, 2 undecided" in text
    assert "3 of these rest on intervals" in text
    assert "about 0.15 would be decided by chance alone" in text
    assert "2 of these rest on intervals" in (tmp_path / "b-fig-verdict.md").read_text()
    assert "rest on intervals" not in (tmp_path / "a-fig-verdict.md").read_text(), "one claim has no multiplicity"
    assert text.index("## a-fig") < text.index("## b-fig")
    assert "0.25 [0.1, 0.4] | 5 | above 0 | **supported** |" in text
    assert "not computed" in text
