"""Measures of networks in half precision: right within the error that they state, or refused."""

import copy
import math

import numpy as np
import pytest
import torch
from curvature_cases import dense_hessian
from half_precision_cases import KINDS, NETWORKS, pair
from torch import nn
from torch.testing import assert_close

import landscape
from landscape.ball.vectors import norm
from landscape.errors import InputError
from landscape.problem.widened import is_half, widened
from landscape.sharpness.half_precision import gradient_error
from landscape.statistics import interval_around

RADII = (1e-3, 1e-2, 0.05, 0.2, 0.5)


class Inside(nn.Module):
    """A network whose forward() opens an autocast region of its own: no float32 is to be had of it."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.model(x).float()


# -- the same loss in float32 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_wide_loss_is_that_of_float64_and_nothing_of_the_network_moves(name, kind):
    low, exact = pair(name, kind)
    before = {k: v.clone() for k, v in low.model.state_dict().items()}
    w = low.weights + 0.01 * torch.randn(low.dimension, generator=torch.Generator().manual_seed(1)).to(low.weights)
    with widened(low) as wide:
        assert wide is not low
        assert wide.computed_in == torch.float32
        assert_close(float(wide.loss()), float(exact.loss()), rtol=1e-6, atol=1e-7)
        assert_close(float(wide.loss(w.float())), float(exact.loss(w.double())), rtol=1e-6, atol=1e-7)
    assert is_half(low), "what is known of the one is not taken for the other"
    for key, value in low.model.state_dict().items():
        assert torch.equal(value, before[key]), key
        assert value.dtype == before[key].dtype
    assert low.passes.forward == wide.passes.forward > 0


def test_batches_that_are_read_again_come_in_float32():
    low, exact = pair("mlp", "bfloat16 weights")
    kept = low.batches.kept
    low.batches.source, low.batches.kept = [(b.args[0], b.target) for b in kept], None
    with widened(low) as wide:
        assert_close(float(wide.loss()), float(exact.loss()), rtol=1e-6, atol=1e-7)


def test_a_copy_that_does_not_fit_is_not_made(monkeypatch):
    low, exact = pair("mlp", "bfloat16 weights")
    cast, _ = pair("mlp", "bfloat16 autocast")
    monkeypatch.setattr("landscape.problem.widened.free_memory", lambda device: 8 * low.dimension - 1)
    with widened(low) as wide:
        assert wide is low
    with widened(cast) as wide:
        assert wide.computed_in == torch.float32, "of float32 weights there is no copy"
    found = landscape.sam_sharpness(low, rho=RADII)
    assert found.evaluated_in == "bfloat16"
    assert (np.abs(found.sharpness - landscape.sam_sharpness(exact, rho=RADII).sharpness) <= found.error_bound).all()


def test_float32_and_float64_stay_what_they_are():
    _, exact = pair("mlp", "bfloat16 weights")
    single = landscape.Problem(
        exact.model.float(), nn.CrossEntropyLoss(), [(b.args[0].float(), b.target) for b in exact.batches]
    )
    for problem in (exact, single):
        with widened(problem) as wide:
            assert wide is problem
    result = landscape.sam_sharpness(single)
    assert result.error_bound is None
    assert "error_bound" not in result.summary()
    assert result.evaluated_in == "float32"


# -- sharpness ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NETWORKS)
def test_one_step_sharpness_is_right_within_its_error(name, kind):
    low, exact = pair(name, kind)
    for options in ({"rho": RADII}, {"rho": tuple(r / 50 for r in RADII), "p": math.inf}, {"rho": RADII, "m": 16}):
        if name == "gpt" and "m" in options:
            continue
        found, right = (landscape.sam_sharpness(problem, **options) for problem in (low, exact))
        error = np.abs(found.sharpness - right.sharpness)
        assert (error <= found.error_bound).all(), (error, found.error_bound)
        assert (found.error_bound[1:] < 0.3 * np.abs(right.sharpness[1:]) + 1e-4).all(), "an error that says nothing"
        assert found.evaluated_in == "float32"
        if "m" in options:
            ends = interval_around(found.sharpness, found.groups)
            np.testing.assert_allclose(found.interval, [ends[0] - found.error_bound, ends[1] + found.error_bound])


@pytest.mark.parametrize("kind", ["bfloat16 weights", "bfloat16 autocast"])
def test_adaptive_and_worst_case_sharpness_are_right_within_their_error(kind):
    low, exact = pair("mlp", kind)
    found, right = (landscape.adaptive_sharpness(p, rho=(0.05, 0.5), one_step_only=True) for p in (low, exact))
    assert (np.abs(found.sharpness - right.sharpness) <= found.error_bound).all()
    tiny = landscape.worst_case_sharpness(low, rho=(1e-5, 1e-4, 1e-3), steps=8)
    assert (tiny.one_step <= tiny.worst_case).all(), "what the ascent took for higher by rounding is not"
    found, right = (landscape.worst_case_sharpness(p, rho=(0.01, 0.1), steps=8) for p in (low, exact))
    assert (found.one_step <= found.worst_case).all()
    assert found.sharpness[0] < found.sharpness[1]
    # The rise at a point is that of float32; where the ascent ends, rounded gradients have led it.
    assert found.resolution < 1e-5
    assert (np.abs(found.sharpness - right.sharpness) <= found.error_bound).all()
    assert (found.error_bound < 0.15 * found.sharpness).all()
    percent = landscape.keskar_sharpness(low, steps=4)
    rises = percent.sharpness * (1 + percent.loss) / 100
    np.testing.assert_allclose(rises, percent.worst_case)
    np.testing.assert_allclose(
        percent.error_bound / percent.sharpness, found.error_bound[1] / found.sharpness[1], rtol=0.05
    )


def test_the_error_of_a_gradient_is_no_smaller_than_it_is():
    for name in NETWORKS:
        for kind in KINDS:
            low, exact = pair(name, kind)
            with widened(low) as wide:
                g = low.gradient()
                true = float(norm(g.double() - exact.gradient()) / norm(exact.gradient()))
                stated = gradient_error(low, wide, g)
            assert true / 2 < stated < 40 * true, (name, kind)


def test_without_float32_the_error_is_that_of_half_precision():
    low, exact = pair("mlp", "bfloat16 autocast")
    inside = landscape.Problem(Inside(low.model), nn.CrossEntropyLoss(), [(b.args[0], b.target) for b in low.batches])
    with widened(inside) as wide:
        assert wide is inside
    found, right = landscape.sam_sharpness(inside, rho=RADII), landscape.sam_sharpness(exact, rho=RADII)
    assert found.evaluated_in == "bfloat16"
    assert (np.abs(found.sharpness - right.sharpness) <= found.error_bound).all()
    assert found.error_bound[0] > found.sharpness[0], "below rounding nothing is claimed"


def test_weights_that_cannot_hold_the_step_say_so():
    low, exact = pair("mlp", "bfloat16 weights")
    held = landscape.sam_sharpness(low, rho=1e-3)
    assert held.displacement_error[0] > 0.9
    assert abs(held.value - landscape.sam_sharpness(exact, rho=1e-3).value) <= held.error_bound[0] < 0.1 * held.value


# -- critical sharpness ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NETWORKS)
def test_critical_sharpness_is_right_within_its_error_in_5_to_7_forward_passes(name, kind):
    low, exact = pair(name, kind)
    right = landscape.critical_sharpness(exact)
    cold = landscape.critical_sharpness(low)
    assert abs(cold.value - right.value) <= cold.error_bound < 0.3 * right.value
    few = 64 / low.examples
    for factor in (0.55, 1.0, 1.9):
        warm = landscape.critical_sharpness(low, factor * right.step)
        assert abs(warm.value - right.value) <= warm.error_bound
        assert 4 <= warm.forwards <= 7
        assert warm.forwards + 1 < warm.cost["forward"] <= warm.forwards + 1 + 2 * few
        assert 1 < warm.cost["backward"] <= 1 + 2 * few
        assert warm.evaluated_in == "float32"
        assert warm.below <= warm.step <= warm.above


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_on_a_quadratic_it_is_the_known_curvature(dtype):
    """L = mean of (x'w - y)^2: the Hessian is 2 X'X / n, known to the last bit of the weights."""
    g = torch.Generator().manual_seed(3)
    x = torch.randn(64, 5, generator=g).to(dtype)
    model = nn.Linear(5, 1, bias=False).to(dtype)
    model.weight.data = torch.randn(1, 5, generator=g).to(dtype)
    y = torch.zeros(64, 1, dtype=dtype)
    problem = landscape.Problem(model, nn.MSELoss(), [(x, y)])
    hessian = 2 * x.double().T @ x.double() / 64
    d = hessian @ model.weight.detach().double().flatten()
    right = float(d @ hessian @ d / (d @ d))
    found = landscape.critical_sharpness(problem)
    assert abs(found.value - right) <= found.error_bound < 0.1 * right
    given = landscape.critical_sharpness(problem, direction=d)  # no gradient is rounded
    assert abs(given.value - right) <= given.error_bound < 1e-3 * right


def test_along_the_gradient_it_is_near_the_dense_hessians_curvature():
    low, exact = pair("gpt", "bfloat16 weights")
    small = exact.restricted("norm")
    h, g = dense_hessian(small).detach(), small.gradient()
    found = landscape.critical_sharpness(low.restricted("norm"))
    right = landscape.critical_sharpness(small)
    assert abs(found.value - right.value) <= found.error_bound
    assert found.value <= float(torch.linalg.eigvalsh(h)[-1]) * 1.1
    assert float(g @ h @ g / (g @ g)) > 0


def test_relative_critical_sharpness_is_right_within_its_error():
    for kind in ("bfloat16 weights", "bfloat16 autocast"):
        low, exact = pair("mlp", kind)
        halves = [[p.with_batches([b]) for b in list(p.batches)[:2]] for p in (low, exact)]
        found, right = (landscape.relative_critical_sharpness(*pair) for pair in halves)
        assert abs(found.value - right.value) <= found.error_bound < 0.5 * right.value
        assert found.provenance["other_loss"] == low.loss_name


def test_a_fall_below_the_rounding_of_half_precision_is_refused():
    low, _ = pair("mlp", "bfloat16 autocast")
    inside = landscape.Problem(Inside(low.model), nn.CrossEntropyLoss(), [(b.args[0], b.target) for b in low.batches])
    flat = copy.deepcopy(low.model)
    with torch.no_grad():
        for p in flat.parameters():
            p.mul_(1e-2)
        flat[-1].bias.zero_()
    flat = landscape.Problem(Inside(flat), nn.CrossEntropyLoss(), [(b.args[0], b.target) for b in low.batches])
    with pytest.raises(InputError, match="do not lower the loss by more than its rounding"):
        landscape.critical_sharpness(flat)
    found = landscape.critical_sharpness(inside)
    assert found.evaluated_in == "bfloat16"
    right = landscape.critical_sharpness(pair("mlp", "bfloat16 autocast")[1])
    assert abs(found.value - right.value) <= found.error_bound


def test_a_loss_that_is_not_a_number_is_no_crossing_and_no_start():
    model = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    nn.init.zeros_(model.weight)
    batches = [(torch.ones(1, 1, dtype=torch.bfloat16), torch.zeros(1))]

    def wall(outputs, _):
        o = outputs.reshape(-1)
        return torch.where(o < 0.3, 1 - o, math.nan * torch.ones_like(o))

    result = landscape.critical_sharpness(landscape.Problem(model, wall, batches))
    assert result.crossed
    assert result.below < 0.3 <= result.above
    lost = landscape.Problem(model, lambda o, _: (o * math.nan).mean(), batches, check=False)
    with pytest.raises(InputError, match="not finite"):
        landscape.critical_sharpness(lost)


# -- average sharpness -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_average_sharpness_is_right_within_its_error(kind):
    low, exact = pair("cnn", kind)
    for options in ({}, {"p": math.inf, "m": 32}, {"scaling": "filterwise"}):
        found, right = (landscape.average_sharpness(p, rho=(1e-3, 1e-2), draws=6, **options) for p in (low, exact))
        assert (np.abs(found.sharpness - right.sharpness) <= found.error_bound).all()
        assert (found.error_bound < 0.01 * right.sharpness).all()
        assert found.evaluated_in == "float32"
        np.testing.assert_allclose(found.interval, right.interval, rtol=2e-3, atol=1e-6)  # 7 digits of the loss


@pytest.mark.parametrize("kind", KINDS)
def test_the_noise_that_raises_the_loss_is_that_of_float64(kind):
    low, exact = pair("mlp", kind)
    found, right = (landscape.pac_bayes_sigma(p, rise=1e-3, draws=4, tol=1e-3) for p in (low, exact))
    # Under a rise of 0.001, of which a loss in bfloat16 knows nothing; 7 digits of the loss are 3e-4 of it.
    assert_close(found.value, right.value, rtol=2e-3, atol=0)
    inside = landscape.Problem(
        Inside(low.model.float()), low.objective.loss, [(b.args[0].float(), b.target) for b in low.batches]
    )
    with pytest.raises(InputError, match="rise=0.001 is below the rounding of the loss"):
        landscape.pac_bayes_sigma(inside, rise=1e-3)


# -- directional sharpness ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_directional_sharpness_from_losses_and_from_products_is_right_within_its_error(kind):
    low, exact = pair("gpt", kind)
    right = landscape.directional_sharpness(exact)
    for hvp in ("losses", "double-backward"):
        found = landscape.directional_sharpness(low, hvp=hvp)
        assert abs(found.value - right.value) <= found.error_bound < 0.25 * right.value, hvp
    assert found.evaluated_in != "float32"
    assert landscape.directional_sharpness(low, hvp="losses").evaluated_in == "float32"


def test_directional_sharpness_from_losses_takes_5_to_7_forward_passes():
    low, _ = pair("gpt", "bfloat16 autocast")
    cold = landscape.directional_sharpness(low, hvp="losses")
    warm = landscape.directional_sharpness(low, cold.neighboring_start, hvp="losses")
    assert 5 <= warm.forwards <= 7
    assert warm.cost["hvp"] == 0
    assert warm.forwards < warm.cost["forward"] <= warm.forwards + 1 + 2 * 64 / low.examples
    assert_close(warm.value, cold.value, rtol=0.02, atol=0)
