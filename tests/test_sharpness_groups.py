"""Sharpness over groups, subsets and restarts."""

import functools
import math

import numpy as np
import pytest
import torch
from sharpness_cases import raw, trained
from torch import nn

import landscape
from landscape.errors import InputError


def test_m_sharpness_is_the_weighted_mean_of_the_groups():
    model, problem = trained(examples=90)
    x, y = (torch.cat(t) for t in zip(*raw(problem), strict=True))
    found = landscape.sam_sharpness(problem, rho=0.1, m=40)
    parts = [
        landscape.Problem(model, nn.functional.cross_entropy, [(x[i : i + 40], y[i : i + 40])]) for i in (0, 40, 80)
    ]
    values = np.array([landscape.sam_sharpness(p, rho=0.1).value for p in parts])
    np.testing.assert_allclose(found.groups[:, 0], values, rtol=1e-10)
    assert found.value == pytest.approx(values @ [40, 40, 10] / 90, rel=1e-10)
    assert found.loss == pytest.approx(problem.loss().item(), rel=1e-12)
    assert found.cost == {"forward": 2, "backward": 1, "hvp": 0}
    assert landscape.sam_sharpness(problem, rho=0.1, m=90).value == pytest.approx(
        landscape.sam_sharpness(problem, rho=0.1).value, rel=1e-10
    )


def test_worst_case_over_groups_exceeds_that_over_all():
    _, problem = trained()
    assert landscape.worst_case_sharpness(problem, rho=0.1, m=8).value > landscape.worst_case_sharpness(problem).value


def test_subsets_give_an_interval_around_the_value():
    _, problem = trained()
    found = landscape.adaptive_sharpness(problem, rho=[0.2, 0.5], subsets=6)
    assert found.subsets.shape == (6, 2)
    low, high = found.interval
    np.testing.assert_allclose((low + high) / 2, found.sharpness, rtol=1e-12)
    # t(0.975, 5) = 2.5706
    half = 2.570582 * found.subsets.std(axis=0, ddof=1) / math.sqrt(6)
    np.testing.assert_allclose(high - found.sharpness, half, rtol=1e-6)
    again = landscape.adaptive_sharpness(problem, rho=[0.2, 0.5], subsets=6)
    np.testing.assert_array_equal(found.subsets, again.subsets)


def test_the_interval_describes_new_samples():
    """Over 60 samples of 300 examples the interval covers the mean of the measure."""
    model, _ = trained(examples=200)
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(12_000, 6, generator=generator).double()
    y = (x[:, :3].abs().argmax(dim=1) + (x[:, 3] > 1)) % 3
    runs = []
    for rows in torch.arange(18_000).remainder(12_000).split(300):
        part = landscape.Problem(model, nn.functional.cross_entropy, [(x[rows], y[rows])], check=False)
        runs.append(landscape.sam_sharpness(part, rho=0.1, subsets=6))
    values = np.array([r.value for r in runs])
    covered = np.mean([r.interval[0, 0] <= values.mean() <= r.interval[1, 0] for r in runs])
    # 95% less the error of 60 trials and of a t interval for skewed values.
    assert covered > 0.8


def test_restarts_are_reported_with_their_spread():
    _, problem = trained()
    found = landscape.worst_case_sharpness(problem, rho=[0.1, 3.0], restarts=9, seed=1)
    assert found.restarts.shape == (9, 2)
    assert (found.worst_case >= found.restarts.max(axis=0)).all()
    spread = np.ptp(found.restarts, axis=0) / found.restarts.max(axis=0)
    np.testing.assert_allclose(found.restart_spread, spread)
    assert (spread > 0).all()
    other = landscape.worst_case_sharpness(problem, rho=[0.1, 3.0], restarts=9, seed=2)
    # The one-step point and both signs of each of three outputs, then random ones.
    np.testing.assert_array_equal(found.restarts[:7], other.restarts[:7])
    assert (found.restarts[7:] != other.restarts[7:]).all()
    assert landscape.worst_case_sharpness(problem, rho=0.1, restarts=1).restart_spread is None


def test_a_part_without_a_label_that_counts_is_refused_with_what_mends_it():
    """40 examples and 400 ignored ones: the labels are fine, and these parts of them too small."""
    model, problem = trained(examples=44)
    x, y = raw(problem)[0]
    x, y = torch.cat([x, x[:1].expand(400, -1)]), torch.cat([y, torch.full((400,), -100)])
    problem = landscape.Problem(model, nn.functional.cross_entropy, [(x, y)])
    assert landscape.sam_sharpness(problem, subsets=4).subsets.shape == (4, 1)
    norm = functools.partial(landscape.fisher_rao_norm, matrix="ggn")
    for measure in (landscape.sam_sharpness, norm, landscape.quantization_rise):
        with pytest.raises(InputError, match="one of 100 random subsets holds no label .* fewer subsets than 100$"):
            measure(problem, subsets=100)
    with pytest.raises(InputError, match="draw of 2 of 440 examples holds no label .* a batch_size above 2, or None"):
        landscape.forgetting(problem, problem, batch_size=2)
    with pytest.raises(InputError, match="one of 100 data subsets holds no label .* fewer subsets than 100$"):
        landscape.profiles(problem, subsets=100)


def test_groups_of_examples_that_lie_in_several_processes_are_refused():
    _, problem = trained(steps=0)
    problem.examples *= 2
    for arguments in ({"m": 4}, {"subsets": 3}):
        with pytest.raises(InputError, match="one process"):
            landscape.sam_sharpness(problem, **arguments)
