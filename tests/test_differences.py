"""Differences between checkpoints are paired over the examples that both were measured on."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from figures.page.analysis import Analysis
from figures.page.differences import paired
from landscape import MEASURES, Problem
from landscape.measures.average_sharpness import AverageSharpness
from landscape.results.cells import error
from landscape.sharpness.sharpness import Sharpness


def analysis(label, loss, sharpness, parts, sample="same"):
    result = Sharpness(
        rho=np.array([0.05, 0.1]),
        sharpness=np.array(sharpness),
        loss=float(np.mean(loss)),
        subsets=np.array(parts),
        non_finite=np.zeros(2, int),
    )
    return Analysis(
        label=label,
        checkpoint=label,
        sha256=label,
        loss=float(np.mean(loss)),
        accuracy=1.0,
        samples=len(loss),
        classified=len(loss),
        parameters=1,
        measures={"sam_sharpness": result},
        examples={"loss": np.array(loss)},
        provenance={"sample_sha256": sample},
    )


@pytest.fixture
def two():
    random = np.random.default_rng(0)
    common = random.exponential(size=500)
    parts = random.normal(1, 0.3, size=(8, 1)) + np.zeros((8, 2))
    a = analysis("a", common, [1.0, 2.0], parts)
    b = analysis(
        "b", common + 0.1 + 0.01 * random.normal(size=500), [0.8, 1.5], parts - 0.2 + 0.01 * random.normal(size=(8, 2))
    )
    return a, b


def test_loss_is_a_paired_t_interval(two):
    a, b = two
    found = paired(two)["loss"][1]
    difference = b.examples["loss"] - a.examples["loss"]
    reference = stats.ttest_1samp(difference, 0).confidence_interval(0.95)
    np.testing.assert_allclose([found["low"], found["high"]], reference, rtol=1e-10)
    unpaired = np.hypot(*(stats.sem(x.examples["loss"]) for x in two))
    assert found["high"] - found["low"] < 0.2 * unpaired


def test_sharpness_is_paired_over_the_subsets(two):
    a, b = two
    found = paired(two)["sam_sharpness"][1]
    parts = b.measures["sam_sharpness"].subsets[:, 0] - a.measures["sam_sharpness"].subsets[:, 0]
    half = stats.t.ppf(0.975, 7) * stats.sem(parts)
    np.testing.assert_allclose(
        [found["value"], found["low"], found["high"]], [-0.2, -0.2 - half, -0.2 + half], rtol=1e-10
    )


def test_nothing_is_claimed_for_other_samples_or_without_a_spread(two):
    a, b = two
    assert paired([a, dataclasses.replace(b, provenance={"sample_sha256": "other"})]) == {}
    bare = dataclasses.replace(b.measures["sam_sharpness"], subsets=None)
    assert paired([a, dataclasses.replace(b, measures={"sam_sharpness": bare}, examples={})]) == {
        "loss": [pytest.approx({"value": 0, "low": 0, "high": 0}), None],
        "accuracy": [None, None],
        "sam_sharpness": [pytest.approx({"value": 0, "low": 0, "high": 0}), None],
    }


@pytest.mark.parametrize("name", [n for n, e in MEASURES.entries.items() if "subsets" in {o.name for o in e.options}])
def test_every_measure_with_subsets_has_a_paired_interval(name, two):
    measured = []
    for seed, base in enumerate(two):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
        x = torch.linspace(-1, 1, 96, dtype=torch.float64).view(32, 3)
        problem = Problem(model, nn.functional.cross_entropy, [(x, torch.arange(32) % 2)])
        measured.append(dataclasses.replace(base, measures={name: MEASURES[name](problem, subsets=4)}))
    found = paired(measured)[name][1]
    first, second = (a.measures[name].value for a in measured)
    assert found["value"] == pytest.approx(second - first)
    assert found["low"] < found["value"] < found["high"]


def test_a_stated_interval_is_the_error_whatever_the_draws_add():
    assert error({"value": 1.0, "low": 0.7, "high": 1.3, "stderr": 0.4}) == (pytest.approx(0.3), "95% interval")
    assert error({"value": 1.0, "low": 0.9, "high": 1.6, "stderr": 0.1}) == (pytest.approx(0.6), "95% interval")
    assert error({"value": 1.0, "low": 0.9, "high": None, "stderr": 0.1}) == (None, "")
    assert error({"value": 1.0, "stderr": 0.0}) == (0, "exact")
    assert error({"value": 1.0, "stderr": 0.1}) == (pytest.approx(0.1959963984540054), "95% interval")
    assert error({"value": 1.0, "low": 0.7, "high": 1.3}) == (pytest.approx(0.3), "95% interval")


def test_draws_add_to_the_interval_of_an_average(two):
    """Paired, where both results hold what each draw gave; apart, where a file of 0.1.0 has the error alone."""
    a, b = (dataclasses.replace(x, measures={"average_sharpness": _average(x)}) for x in two)
    plain, wide = paired(two)["sam_sharpness"][1], paired([a, b])["average_sharpness"][1]
    draws = 1.959963984540054 * np.hypot(0.1, 0.1)
    half = np.hypot((plain["high"] - plain["low"]) / 2, draws)
    np.testing.assert_allclose([wide["low"], wide["high"]], [wide["value"] - half, wide["value"] + half], rtol=1e-10)

    common = np.random.default_rng(1).normal(size=(10, 2))
    shift = [np.zeros((10, 2)), np.outer(np.linspace(-0.01, 0.01, 10), np.ones(2))]
    a, b = (
        dataclasses.replace(x, measures={"average_sharpness": _average(x, per_draw=common + s)})
        for x, s in zip(two, shift, strict=True)
    )
    paired_draws = paired([a, b])["average_sharpness"][1]
    half = np.hypot((plain["high"] - plain["low"]) / 2, stats.t.ppf(0.975, 9) * stats.sem(shift[1][:, 0]))
    assert paired_draws["high"] - paired_draws["low"] == pytest.approx(2 * half)


def _average(x, **more):
    fields = {f.name: getattr(x.measures["sam_sharpness"], f.name) for f in dataclasses.fields(Sharpness)}
    return AverageSharpness(**fields, stderr=np.array([0.1, 0.2]), rms_norm=np.ones(2), **more)
