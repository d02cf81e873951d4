"""The projected ascent itself: no host synchronization, numerical edges, quality."""

import copy
import math

import numpy as np
import pytest
import torch
from sharpness_cases import bowl, raw, trained
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import landscape
from landscape.ball.ascent import Ball, checkpoints, maximize


class NoHostSync(TorchDispatchMode):
    """Fails where the value of a tensor is read on the host, which makes a GPU wait."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "a tensor was read on the host"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("p", [2.0, math.inf])
def test_no_value_is_read_on_the_host_within_the_ascent(p):
    _, problem = trained()
    scale = problem.weights.abs()
    center = problem.gradient() * scale
    with pytest.raises(AssertionError, match="read on the host"), NoHostSync():
        bool(center.any())
    with NoHostSync():
        found = maximize(problem, Ball(p, scale), 0.1, Ball(p).steepest(center, 0.1), center, 20)
    assert found.loss > found.first > problem.loss()


def test_checkpoints_come_after_22_41_57_percent_of_the_steps():
    assert checkpoints(100) == {22: 0, 41: 22, 57: 41, 70: 57, 80: 70, 87: 80, 93: 87, 99: 93}
    assert list(checkpoints(20)) == [5, 9, 12, 14, 16, 18, 19, 20]
    assert list(checkpoints(1)) == [1]


@pytest.mark.parametrize("p", [2.0, math.inf])
def test_every_iterate_lies_in_the_ball(p):
    _, problem = trained()
    scale = problem.weights.abs()
    radii = []
    evaluate = problem.loss_and_gradient

    def spy(w=None):
        if w is not None:
            radii.append(torch.linalg.vector_norm((w - problem.weights) / scale, p).item())
        return evaluate(w)

    problem.loss_and_gradient = spy
    landscape.worst_case_sharpness(problem, rho=0.3, p=p, scaling="elementwise", restarts=3)
    # Three candidates, since what is replaced shows no outputs: plus and minus the gradient, and a random point.
    assert len(radii) == 19 + 3 * 3 + 2 * 15
    assert max(radii) <= 0.3 * (1 + 1e-9)
    assert max(radii) == pytest.approx(0.3, rel=1e-9)


def test_random_points_use_the_whole_radius_on_what_can_move():
    scale = torch.tensor([0.0, 1.0, 2.0, 0.0, 0.5]).double()
    for p in (2.0, math.inf):
        u = Ball(p, scale).random(scale, 0.7, torch.Generator().manual_seed(0))
        assert not u[[0, 3]].any()
        assert torch.linalg.vector_norm(u, p) <= 0.7 * (1 + 1e-6)
    u = Ball(2.0, scale).random(scale, 0.7, torch.Generator().manual_seed(0))
    assert torch.linalg.vector_norm(u).item() == pytest.approx(0.7, rel=1e-6)


# -- losses that are not finite --------------------------------------------------------------------------------------


def cliff(limit, value):
    """The bowl's loss, but `value` where it would exceed `limit`."""
    return lambda outputs, targets: torch.where(outputs > limit, value + 0 * outputs, outputs)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_points_that_are_not_finite_are_counted_and_never_the_maximum(value):
    problem, _, g = bowl()
    start = problem.loss().item()
    broken = landscape.Problem(problem.model, cliff(start + 1.0, value), raw(problem), check=False)
    found = landscape.worst_case_sharpness(broken, rho=[0.01, 5.0], steps=40)
    assert found.non_finite[0] == 0 < found.non_finite[1]
    # Below the cliff, and well beyond the smaller radius: the ascent backs off and goes on.
    assert 0.5 < found.sharpness[1] <= 1.0
    assert found.sharpness[0] == pytest.approx(0.01 * g.norm().item(), rel=0.05)
    assert found.summary()["curve"][1]["non_finite"] == found.non_finite[1]


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_one_step_loss_that_is_not_finite_is_reported_as_such(value):
    problem, _, _ = bowl()
    broken = landscape.Problem(problem.model, cliff(problem.loss().item() + 1.0, value), raw(problem), check=False)
    found = landscape.sam_sharpness(broken, rho=[0.01, 5.0])
    assert list(found.non_finite) == [0, 1]
    assert math.isfinite(found.value)
    assert not math.isfinite(found.sharpness[1])
    assert found.summary()["curve"][1]["value"] is None


def test_a_ball_without_any_finite_point_gives_nan_not_zero():
    problem, _, _ = bowl()
    start = problem.loss().item()
    everywhere = landscape.Problem(
        problem.model, lambda o, _: o + torch.where(o == start, 0.0, math.nan), raw(problem), check=False
    )
    found = landscape.worst_case_sharpness(everywhere, rho=1.0, steps=5, restarts=2)
    assert math.isnan(found.value)
    assert np.isnan(found.restarts).all()
    assert found.non_finite[0] == 10
    # A larger ball contains the smaller one's maximizer: its value stays a lower bound.
    inner = landscape.Problem(problem.model, cliff(problem.loss().item() + 0.1, math.nan), raw(problem), check=False)
    curve = landscape.worst_case_sharpness(inner, rho=[0.01, 1e6], steps=3)
    assert curve.sharpness[1] >= curve.sharpness[0] > 0


# -- precision -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [2.0, math.inf])
def test_float32_agrees_with_float64_within_the_stated_resolution(p):
    model, wide = trained()
    narrow = landscape.Problem(model.float(), nn.functional.cross_entropy, raw(wide))
    again = landscape.Problem(copy.deepcopy(model).double(), nn.functional.cross_entropy, raw(wide))
    for rho in (1e-3, 0.03) if p == 2 else (1e-5, 1e-3):
        a, b = (landscape.sam_sharpness(q, rho=rho, p=p) for q in (narrow, again))
        assert abs(a.value - b.value) < a.resolution
        assert a.resolution < 1e-6
        assert b.resolution < 1e-14


def test_bfloat16_says_that_it_cannot_hold_a_small_perturbation():
    model, wide = trained()
    problem = landscape.Problem(model.bfloat16(), nn.functional.cross_entropy, raw(wide))
    found = landscape.sam_sharpness(problem, rho=[1e-4, 1.0])
    assert found.displacement_error[0] > 0.9
    assert found.displacement_error[1] < 0.1
    assert landscape.sam_sharpness(wide, rho=1e-4).displacement_error[0] < 1e-10


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, math.inf])
@pytest.mark.parametrize("scaling", ["identity", "elementwise"])
def test_gradients_near_underflow_still_give_a_direction(p, scaling):
    problem, _, _ = bowl(linear=True)
    model = problem.model
    model.w.data, model.a, model.b = model.w.data.float(), model.a.float(), model.b.float()
    size = 1e-38
    tiny = landscape.Problem(model, lambda outputs, targets: outputs * size, raw(problem))
    plain = landscape.Problem(model, lambda outputs, targets: outputs, raw(problem))
    steps = []
    for q in (tiny, plain):
        scale = None if scaling == "identity" else q.weights.abs()
        ball = Ball(p, scale)
        steps.append(ball.epsilon(ball.steepest(ball.gradient(q.gradient()), 0.1)))
    # Subnormal numbers keep a few digits only.
    torch.testing.assert_close(steps[0], steps[1], rtol=1e-3, atol=1e-6)


def test_saturated_float32_network_has_a_gradient_of_zero_and_a_worst_case_above_it():
    model, problem = trained(dtype=torch.float32)
    with torch.no_grad():
        model[-1].weight *= 1e5
        model[-1].bias *= 1e5
    x, _ = (torch.cat(t) for t in zip(*raw(problem), strict=True))
    y = model(x).argmax(dim=1)
    flat = landscape.Problem(model, nn.functional.cross_entropy, [(x, y)])
    keep = flat.losses() == 0
    flat = landscape.Problem(model, nn.functional.cross_entropy, [(x[keep], y[keep])])
    assert not flat.gradient().any()
    found = landscape.adaptive_sharpness(flat, rho=5.0, restarts=4, seed=1)
    assert found.value == 0.0
    assert found.first_order[0] == 0.0
    assert found.worst_case[0] >= 0.0
    assert landscape.worst_case_sharpness(flat, rho=100.0, restarts=4).value > 0


@pytest.mark.parametrize("p", [2.0, math.inf])
def test_huge_radii_stay_finite_or_are_counted(p):
    _, problem = trained(dtype=torch.float32)
    found = landscape.worst_case_sharpness(problem, rho=[1.0, 1e8, 1e30], p=p, steps=6)
    assert np.isfinite(found.sharpness[:2]).all()
    assert (np.diff(found.sharpness) >= 0).all()
    assert found.non_finite[2] > 0 or np.isfinite(found.sharpness[2])


# -- quality ---------------------------------------------------------------------------------------------------------


def test_more_steps_and_restarts_find_no_less():
    _, problem = trained()
    few = landscape.worst_case_sharpness(problem, rho=1.0, steps=5)
    more = landscape.worst_case_sharpness(problem, rho=1.0, steps=80)
    restarted = landscape.worst_case_sharpness(problem, rho=1.0, steps=80, restarts=4)
    assert few.value <= more.value <= restarted.value
    assert restarted.restarts[0, 0] == more.restarts[0, 0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scaling", "rho"), [("identity", 0.05), ("identity", 0.2), ("elementwise", 0.1), ("elementwise", 0.5)]
)
def test_twenty_steps_reach_95_percent_of_the_best_of_20_restarts_of_200(scaling, rho):
    problem = _trained_cnn()
    ours = landscape.worst_case_sharpness(problem, rho=rho, scaling=scaling)
    best = landscape.worst_case_sharpness(problem, rho=rho, scaling=scaling, restarts=20, steps=200, seed=1)
    assert ours.value >= 0.95 * best.value
    assert ours.value > ours.one_step[0]


def _trained_cnn():
    """A convolutional network of 1,442 parameters that classifies 9 of 10 digits, with 128 of them."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x, y = torch.tensor(digits.images[:, None] / 16).double(), torch.tensor(digits.target)
    x = (x - x.mean()) / x.std()
    model = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)),
    ).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                draw = torch.randn(parameter.shape, generator=generator).double()
                parameter.copy_(draw * math.sqrt(2 / parameter[0].numel()))
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for _ in range(8):
        for rows in torch.randperm(1500, generator=generator).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model.train()(x[rows]), y[rows]).backward()
            optimizer.step()
    return landscape.Problem(model.eval(), nn.functional.cross_entropy, [(x[:128], y[:128])])
