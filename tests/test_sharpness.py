"""Sharpness against closed forms: order, invariance, wrong input."""

import copy
import math

import numpy as np
import pytest
import torch
from scipy import optimize
from sharpness_cases import bowl, raw, rescaled, trained
from torch import nn

import landscape
from landscape.errors import InputError


def trust_region_maximum(a, g, rho):
    """max over ||e|| <= rho of g'e + e'Ae/2 for A >= 0: (lambda - A) e = g with lambda >= lambda_max, ||e|| = rho."""
    values, vectors = torch.linalg.eigh(a)
    c = (vectors.T @ g).numpy()
    values = values.numpy()
    top = values[-1]
    if np.abs(c).max() < 1e-12:
        return rho**2 * top / 2

    def norm(multiplier):
        return np.linalg.norm(c / (multiplier - values)) - rho

    low = top + abs(c[-1]) / rho / 2
    multiplier = optimize.brentq(norm, low, top + np.linalg.norm(c) / rho, xtol=1e-14, rtol=1e-14)
    e = c / (multiplier - values)
    return float(c @ e + (values * e**2).sum() / 2)


# -- closed forms ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rho", [0.01, 0.3, 5.0])
def test_one_step_on_a_bowl_is_its_second_order_expansion(rho):
    problem, a, g = bowl()
    direction = g / g.norm()
    expected = rho * g.norm() + rho**2 * (direction @ a @ direction) / 2
    found = landscape.sam_sharpness(problem, rho=rho)
    assert found.value == pytest.approx(expected.item(), rel=1e-10)
    assert found.first_order[0] == pytest.approx(rho * g.norm().item(), rel=1e-12)
    assert found.cost == {"forward": 2, "backward": 1, "hvp": 0}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rho", [0.05, 0.5, 5.0])
def test_worst_case_on_a_bowl_is_the_trust_region_maximum(seed, rho):
    problem, a, g = bowl(seed)
    exact = trust_region_maximum(a, g, rho)
    twenty = landscape.worst_case_sharpness(problem, rho=rho, restarts=3).value
    many = landscape.worst_case_sharpness(problem, rho=rho, steps=300, restarts=3).value
    assert twenty <= exact * (1 + 1e-10)
    assert twenty >= 0.99 * exact
    # An iterative maximizer: the error falls with the steps, 1e-6 is what 300 of them reach.
    assert many == pytest.approx(exact, rel=1e-6)


def test_worst_case_leaves_a_stationary_point():
    problem, a, _ = bowl(stationary=True)
    found = landscape.worst_case_sharpness(problem, rho=0.5, steps=200, restarts=2)
    assert found.value == pytest.approx(0.125 * torch.linalg.eigvalsh(a)[-1].item(), rel=1e-4)
    assert found.one_step[0] == 0 == landscape.sam_sharpness(problem).value


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 4.0, math.inf])
def test_linear_loss_reaches_rho_times_the_dual_norm(p):
    problem, _, g = bowl(linear=True)
    q = math.inf if p == 1 else 1.0 if math.isinf(p) else p / (p - 1)
    expected = 0.3 * torch.linalg.vector_norm(g, q).item()
    assert landscape.sam_sharpness(problem, rho=0.3, p=p).value == pytest.approx(expected, rel=1e-10)
    if p in (2.0, math.inf):
        assert landscape.worst_case_sharpness(problem, rho=0.3, p=p).value == pytest.approx(expected, rel=1e-10)


def test_worst_case_in_the_box_finds_the_best_corner():
    problem, a, g = bowl(3, d=8)
    signs = torch.tensor([[1 if k >> i & 1 else -1 for i in range(8)] for k in range(256)], dtype=torch.float64)
    rho = 0.4
    values = rho * signs @ g + rho**2 * torch.einsum("ki,ij,kj->k", signs, a, signs) / 2
    found = landscape.worst_case_sharpness(problem, rho=rho, p=math.inf, steps=60, restarts=10)
    assert found.value == pytest.approx(values.max().item(), rel=1e-8)


# -- order ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [2.0, math.inf])
@pytest.mark.parametrize("scaling", ["identity", "elementwise", "filterwise", "layerwise", "asam-official"])
def test_worst_case_is_monotone_and_never_below_one_step_or_zero(p, scaling):
    _, problem = trained()
    rho = [0.01, 0.4, 0.05, 3.0, 0.1] if p == 2 else [1e-4, 4e-3, 1e-3, 0.1, 0.02]
    found = landscape.worst_case_sharpness(problem, rho=rho, p=p, scaling=scaling, steps=8)
    assert (found.worst_case >= np.maximum(found.one_step, 0)).all()
    assert (np.diff(found.sharpness[np.argsort(rho)]) >= 0).all()
    np.testing.assert_array_equal(found.rho, rho)


def test_curve_holds_the_values_of_single_radii():
    _, problem = trained()
    curve = landscape.sam_sharpness(problem, rho=[0.3, 0.02, 0.1])
    single = [landscape.sam_sharpness(problem, rho=r).value for r in (0.3, 0.02, 0.1)]
    np.testing.assert_allclose(curve.sharpness, single, rtol=1e-12)
    assert curve.cost == {"forward": 4, "backward": 1, "hvp": 0}


def test_warm_starts_only_add_to_a_curve():
    _, problem = trained(steps=400)
    rho = [0.1, 0.3, 1.0, 3.0]
    curve = landscape.worst_case_sharpness(problem, rho=rho)
    single = [landscape.worst_case_sharpness(problem, rho=r).value for r in rho]
    assert (curve.sharpness >= single).all()
    np.testing.assert_array_equal(curve.restarts.max(axis=0), single)
    # 3 outputs, both signs of them at 4 radii; at each an ascent from the one-step point, 4 short ones and what is left
    # of the best, and 3 warm ones.
    assert curve.cost["forward"] == 1 + 3 + 24 + 4 * (20 + 4 * 4 + 16) + 3 * 20
    assert curve.cost["backward"] == 1 + 3 + 4 * (19 + 4 * 3 + 15) + 3 * 19


def test_one_step_of_the_ascent_is_the_one_step_value():
    _, problem = trained()
    for p, rho in ((2.0, 0.1), (math.inf, 0.003)):
        one = landscape.sam_sharpness(problem, rho=rho, p=p).value
        ascent = landscape.worst_case_sharpness(problem, rho=rho, p=p)
        assert ascent.one_step[0] == pytest.approx(one, rel=1e-12)
        assert landscape.worst_case_sharpness(problem, rho=rho, p=p, steps=1).value == pytest.approx(one, rel=1e-12)
        short = {"forward": 4 * 4, "backward": 4 * 3}
        assert ascent.cost["forward"] == 1 + 3 + 6 + 20 + short["forward"] + 16
        assert ascent.cost["backward"] == 1 + 3 + 19 + short["backward"] + 15
        alone = landscape.worst_case_sharpness(problem, rho=rho, p=p, restarts=1)
        assert alone.cost == {"forward": 21, "backward": 20, "hvp": 0}


def test_late_gain_says_whether_more_steps_would_find_more():
    problem, a, g = bowl(2)
    exact = trust_region_maximum(a, g, 5.0)
    gains = {}
    for steps in (1, 4, 300):
        found = landscape.worst_case_sharpness(problem, rho=[1.0, 5.0], steps=steps)
        gains[steps] = found.late_gain[1]
        assert found.summary()["curve"][1]["late_gain"] == gains[steps]
    assert gains[1] == 1.0
    assert 1e-6 < gains[4] < 1.0
    assert gains[300] < 1e-9
    assert found.sharpness[1] == pytest.approx(exact, rel=1e-6)


def test_adaptive_value_is_one_step_with_the_worst_case_beside_it():
    _, problem = trained()
    found = landscape.adaptive_sharpness(problem, rho=0.5)
    worst = landscape.worst_case_sharpness(problem, rho=0.5, scaling="elementwise")
    assert found.value == found.one_step[0] == worst.one_step[0]
    assert found.worst_case[0] == worst.value > found.value
    assert landscape.adaptive_sharpness(problem, rho=0.5, one_step_only=True).worst_case is None
    assert landscape.adaptive_sharpness(problem, rho=0.5, p=3.0).worst_case is None


# -- invariance -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("biases", ["scaled", "fixed"])
@pytest.mark.parametrize(("p", "rho"), [(2.0, 0.5), (2.0, 4.0), (math.inf, 0.005), (math.inf, 0.1)])
def test_elementwise_sharpness_is_invariant_under_rescaling(p, rho, biases):
    model, problem = trained()
    values = []
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        factors = [torch.exp(torch.randn(16, generator=generator).double()) for _ in range(2)]
        other = landscape.Problem(rescaled(model, factors), nn.functional.cross_entropy, raw(problem))
        found = landscape.adaptive_sharpness(other, rho=rho, p=p, biases=biases, restarts=2)
        values.append([found.value, found.worst_case[0], *found.restarts[:, 0]])
    spread = np.ptp(values, axis=0) / np.median(values, axis=0)
    assert spread.max() < 1e-9


def test_other_measures_do_change_under_rescaling():
    model, problem = trained()
    tau = torch.exp(torch.linspace(-1, 1, 16, dtype=torch.float64))
    other = landscape.Problem(rescaled(model, [tau, tau.flip(0)]), nn.functional.cross_entropy, raw(problem))
    torch.testing.assert_close(other.outputs(), problem.outputs(), rtol=1e-12, atol=1e-12)
    for arguments in ({"scaling": "asam-official"}, {"biases": "unscaled"}, {"scaling": "filterwise"}):
        a, b = (landscape.adaptive_sharpness(p, rho=0.5, **arguments).value for p in (problem, other))
        assert abs(a - b) > 1e-3 * abs(a), arguments
    a, b = (landscape.sam_sharpness(p, rho=0.1).value for p in (problem, other))
    assert abs(a - b) > 1e-3 * abs(a)


def test_logit_normalization_takes_the_scale_of_the_last_layer_out():
    model, problem = trained()
    louder = copy.deepcopy(model)
    with torch.no_grad():
        louder[-1].weight *= 10
        louder[-1].bias *= 10
    for normalized in (True, False):
        a, b = (
            landscape.adaptive_sharpness(
                landscape.Problem(m, nn.functional.cross_entropy, raw(problem), logit_normalization=normalized), rho=0.5
            )
            for m in (model, louder)
        )
        ratios = [b.value / a.value, b.worst_case[0] / a.worst_case[0]]
        if normalized:
            asked = landscape.adaptive_sharpness(problem, rho=0.5, logit_normalization=True)
            assert asked.value == a.value
            assert asked.provenance["logit_normalization"]
            assert not problem.logit_normalization
            np.testing.assert_allclose(ratios, 1, rtol=1e-9)
        else:
            assert min(ratios) > 2


def test_zero_weights_are_harmless():
    model, problem = trained()
    before = landscape.adaptive_sharpness(problem, rho=0.5)
    with torch.no_grad():
        model[0].weight[0, 0] = 0.0
    after = landscape.adaptive_sharpness(landscape.Problem(model, nn.functional.cross_entropy, raw(problem)), rho=0.5)
    assert after.value == pytest.approx(before.value, rel=0.5)
    assert after.worst_case[0] == pytest.approx(before.worst_case[0], rel=0.5)


def test_a_single_zero_weight_does_not_blow_up_the_worst_case():
    """At the very weights: T = 0 there, the weight stays, and what remains is the ball of the others."""
    model, problem = trained()
    with torch.no_grad():
        model[2].weight[3, 4] = 0.0
    zeroed = landscape.Problem(model, nn.functional.cross_entropy, raw(problem))
    nearly = copy.deepcopy(model)
    with torch.no_grad():
        nearly[2].weight[3, 4] = 1e-12
    nearly = landscape.Problem(nearly, nn.functional.cross_entropy, raw(problem))
    for p, rho in ((2.0, 0.5), (math.inf, 0.02)):
        a, b = (landscape.adaptive_sharpness(q, rho=rho, p=p) for q in (zeroed, nearly))
        np.testing.assert_allclose(a.sharpness, b.sharpness, rtol=1e-8)
        np.testing.assert_allclose(a.worst_case, b.worst_case, rtol=1e-8)


# -- Keskar ----------------------------------------------------------------------------------------------------------


def test_keskar_sharpness_is_the_worst_case_in_its_box_in_percent():
    _, problem = trained()
    found = landscape.keskar_sharpness(problem, rho=[1e-3, 1e-2], subsets=3)
    box = landscape.worst_case_sharpness(
        problem, rho=[1e-3, 1e-2], p=math.inf, scaling="elementwise", eta=1.0, subsets=3
    )
    percent = 100 / (1 + problem.loss().item())
    np.testing.assert_allclose(found.sharpness, percent * box.sharpness, rtol=1e-12)
    np.testing.assert_allclose(found.interval, percent * box.interval, rtol=1e-12)
    np.testing.assert_allclose(found.worst_case, box.worst_case, rtol=1e-12)
    assert found.summary()["unit"] == "percent of 1 + loss"


def test_keskar_sharpness_on_a_linear_loss_is_the_weighted_one_norm():
    problem, _, g = bowl(linear=True)
    start = problem.loss()
    problem = landscape.Problem(problem.model, lambda outputs, targets: outputs - start + 0.5, raw(problem))
    expected = 100 * 1e-3 * ((problem.weights.abs() + 1) * g.abs()).sum().item() / 1.5
    assert landscape.keskar_sharpness(problem).value == pytest.approx(expected, rel=1e-10)


def test_keskar_sharpness_of_a_loss_below_minus_one_is_refused():
    problem, _, _ = bowl(linear=True)
    low = landscape.Problem(problem.model, lambda outputs, targets: outputs - 100, raw(problem))
    with pytest.raises(InputError, match="1 \\+ loss > 0"):
        landscape.keskar_sharpness(low)


# -- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"rho": 0.0}, "rho=0"),
        ({"rho": -1.0}, "rho=-1"),
        ({"rho": [0.1, math.nan]}, "rho=nan"),
        ({"rho": math.inf}, "rho=inf"),
        ({"rho": []}, "no radius"),
        ({"p": 0.5}, "p=0.5"),
        ({"p": math.nan}, "p=nan"),
        ({"m": 0}, "m=0"),
        ({"m": 97}, "only 96 examples"),
        ({"subsets": 1}, "subsets=1"),
        ({"subsets": 97}, "only 96 examples"),
        ({"m": 2.5}, "m=2.5"),
        ({"m": 30, "subsets": 4}, "only 24 examples in each of 4 subsets"),
    ],
)
@pytest.mark.parametrize("name", ["sam_sharpness", "worst_case_sharpness", "adaptive_sharpness"])
def test_wrong_arguments_are_refused(name, arguments, says):
    _, problem = trained(steps=0)
    with pytest.raises(InputError, match=says):
        landscape.MEASURES[name](problem, **arguments)


@pytest.mark.parametrize("name", ["worst_case_sharpness", "average_sharpness", "adaptive_sharpness"])
def test_a_ball_in_which_nothing_moves_is_refused(name):
    _, problem = trained(steps=0)
    with pytest.raises(InputError, match="nothing moves"):
        landscape.MEASURES[name](problem.restricted("*.bias"), scaling="elementwise", biases="fixed")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [({"steps": 0}, "steps=0"), ({"steps": -3}, "steps=-3"), ({"restarts": 0}, "restarts=0"), ({"p": 3.0}, "p=3")],
)
def test_wrong_arguments_of_the_ascent_are_refused(arguments, says):
    _, problem = trained(steps=0)
    with pytest.raises(InputError, match=says):
        landscape.worst_case_sharpness(problem, **arguments)


def test_weights_and_losses_that_are_not_finite_are_refused():
    model, problem = trained(steps=0)
    bad = [(x * math.inf, y) for x, y in raw(problem)]
    with pytest.raises(InputError, match="not finite"):
        landscape.sam_sharpness(landscape.Problem(model, nn.functional.cross_entropy, bad, check=False))
    with torch.no_grad():
        model[2].bias[1] = math.nan
    broken = landscape.Problem(model, nn.functional.cross_entropy, raw(problem))
    for name in ("sam_sharpness", "worst_case_sharpness", "adaptive_sharpness"):
        with pytest.raises(InputError, match=r"2\.bias"):
            landscape.MEASURES[name](broken)
