"""Geodesic balls of attention beside geodesics that are integrated from the metric alone."""

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import nn
from torch.testing import assert_close

from landscape.errors import InputError
from landscape.invariance import geodesics
from landscape.invariance.geodesics import geodesic_ball
from landscape.invariance.rescaling import Head, Part
from landscape.problem.parameters import Parameters
from landscape.random import stream

SHAPES = {"g": (4, 2), "h": (3, 2), "rest": (3,)}
HEAD = Head((Part("g", 1, (0, 1), False), Part("h", 1, (0, 1), True)), (0, 1), ())


class Tensors(nn.Module):
    def __init__(self, shapes=None):
        super().__init__()
        for name, shape in (shapes or SHAPES).items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape, dtype=torch.float64)))


LAYOUT = Parameters.of(Tensors())


def point(seed=0):
    return torch.randn(LAYOUT.dimension, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ball_at(w, metric="inv", scaling="elementwise", heads=(HEAD,)):
    return geodesic_ball(LAYOUT, w, heads, metric=metric, scaling=scaling)


def squared_length(w, t, metric):
    """The metric as the papers write it: squared length of a tangent t at w."""
    (g, h, rest), (x, y, z) = LAYOUT.unflatten(w), LAYOUT.unflatten(t)
    outside = (z / rest).square().sum()
    gg, hh = g.T @ g, h.T @ h
    if metric == "inv":
        return torch.trace(torch.linalg.inv(gg) @ x.T @ x) + torch.trace(torch.linalg.inv(hh) @ y.T @ y) + outside
    return torch.trace(hh @ x.T @ x) + torch.trace(gg @ y.T @ y) + outside


def shot(w, t, metric):
    """Exp_w(t) by the Euler-Lagrange equations of the squared length: derivatives by autograd, integration by scipy."""

    def slope(_, state):
        at, speed = (torch.tensor(s) for s in np.split(state, 2))
        matrix = torch.func.hessian(lambda s: squared_length(at, s, metric) / 2)(speed)
        force = torch.func.grad(lambda p: squared_length(p, speed, metric) / 2)(at)
        momentum = torch.func.jvp(
            lambda p: torch.func.grad(lambda s: squared_length(p, s, metric) / 2)(speed), (at,), (speed,)
        )[1]
        return np.concatenate([speed.numpy(), torch.linalg.solve(matrix, force - momentum).numpy()])

    state = np.concatenate([w.numpy(), t.numpy()])
    return torch.tensor(solve_ivp(slope, (0, 1), state, rtol=1e-10, atol=1e-12).y[: len(w), -1])


def tangent(ball, u):
    """The derivative of t -> Exp(t u) at 0."""
    return torch.autograd.functional.jvp(ball.epsilon, torch.zeros_like(u), u)[1]


@pytest.mark.parametrize("metric", ["inv", "mix"])
def test_coordinates_have_the_length_of_the_tangent(metric):
    w = point()
    ball = ball_at(w, metric)
    for seed in range(3):
        u = ball.random(w, 0.7, stream(seed, "u"))
        assert_close(torch.linalg.vector_norm(u).item(), 0.7)
        assert_close(squared_length(w, tangent(ball, u), metric).item(), 0.49, rtol=1e-10, atol=0)


@pytest.mark.parametrize(("metric", "tolerance"), [("inv", 1e-9), ("mix", 1e-7)])  # mix: STEPS of an order 4 method
def test_geodesics(metric, tolerance):
    w = point()
    ball = ball_at(w, metric)
    u = ball.random(w, 0.6, stream(1, "u"))
    assert_close(w + ball.epsilon(u), shot(w, tangent(ball, u), metric), rtol=0, atol=tolerance)
    # Not those of a straight line: the test would see it.
    assert (ball.epsilon(u) - tangent(ball, u)).abs().max() > 1e-2


@pytest.mark.parametrize("metric", ["inv", "mix"])
def test_horizontal_tangents_are_orthogonal_to_the_maps(metric):
    w = point()
    ball = ball_at(w, metric)
    xi = tangent(ball, ball.random(w, 1.0, stream(2, "u")))
    g, h, rest = LAYOUT.unflatten(w)
    for seed in range(4):
        a = torch.randn(2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        vertical = LAYOUT.flatten([g @ a, -h @ a.T, torch.zeros_like(rest)])
        together = squared_length(w, xi + vertical, metric) - squared_length(w, xi - vertical, metric)
        assert abs(together.item()) < 1e-10 * squared_length(w, vertical, metric).item() ** 0.5
        # The gradient of what depends on G H' alone needs no projection.
    invariant = torch.func.grad(lambda v: (LAYOUT.unflatten(v)[0] @ LAYOUT.unflatten(v)[1].T).sin().sum())(w)
    assert_close(ball.gradient(invariant), _unprojected(ball, invariant), rtol=0, atol=1e-10)


def _unprojected(ball, g):
    return torch.func.grad(lambda u: ball.epsilon(u) @ g)(torch.zeros_like(g))


@pytest.mark.parametrize("metric", ["inv", "mix"])
def test_gradient_along_the_geodesic(metric):
    w, g = point(), point(9)
    ball = ball_at(w, metric)
    u, v = ball.random(w, 0.5, stream(3, "u")), ball.random(w, 1.0, stream(4, "u"))
    slope = torch.autograd.functional.jvp(lambda p: ball.epsilon(p) @ g, u, v)[1].item()
    step = 1e-5
    difference = (ball.epsilon(u + step * v) - ball.epsilon(u - step * v)) @ g / (2 * step)
    assert_close((ball.gradient(g, u) @ v).item(), slope, rtol=1e-9, atol=0)
    assert_close(slope, difference.item(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("metric", ["inv", "mix"])
def test_mapped_weights_have_the_same_ball(metric):
    w = point()
    g, h, rest = LAYOUT.unflatten(w)
    a = torch.tensor([[2.0, -1.0], [0.5, 1.0]], dtype=torch.float64)
    other = LAYOUT.flatten([g @ a, h @ torch.linalg.inv(a).T, rest])
    first, second = ball_at(w, metric), ball_at(other, metric)
    u = first.random(w, 0.8, stream(5, "u"))
    assert_close(second.random(w, 0.8, stream(5, "u")), u, rtol=1e-10, atol=1e-12)
    (g1, h1, r1), (g2, h2, r2) = (LAYOUT.unflatten(c + b.epsilon(u)) for c, b in ((w, first), (other, second)))
    assert_close(g2, g1 @ a, rtol=1e-10, atol=1e-12)
    assert_close(h2, h1 @ torch.linalg.inv(a).T, rtol=1e-10, atol=1e-12)
    assert_close(r2, r1)


def test_metrics_differ_and_other_parameters_follow_their_scaling():
    w = point()
    u = ball_at(w).random(w, 0.8, stream(5, "u"))
    moved = {key: ball_at(w, *key).epsilon(u) for key in (("inv", "elementwise"), ("mix", "elementwise"))}
    assert (moved["inv", "elementwise"] - moved["mix", "elementwise"]).abs().max() > 1e-2
    rest, z = w[-3:], u[-3:]
    assert_close(moved["inv", "elementwise"][-3:], rest * torch.exp(z * rest.sign()) - rest)
    assert_close(ball_at(w, scaling="identity").epsilon(u)[-3:], z)


def test_null_directions_do_not_move_in_inv_and_have_no_length_in_mix():
    w = point()
    w[: LAYOUT.slots[0].stop].view(4, 2)[:, 1] = 2 * w[: LAYOUT.slots[0].stop].view(4, 2)[:, 0]
    ball = ball_at(w)
    u = ball.random(w, 0.8, stream(6, "u"))
    g = LAYOUT.unflatten(w + ball.epsilon(u))[0]
    assert_close(g[:, 1], 2 * g[:, 0])
    assert (g - LAYOUT.unflatten(w)[0]).abs().max() > 1e-2
    with pytest.raises(InputError, match=r"rank 1 for 2 dimensions: metric=mix has no length there; take metric=inv"):
        ball_at(w, "mix")


def test_long_geodesics_take_the_exponential_of_torch(monkeypatch):
    w = point()
    ball = ball_at(w)
    u = ball.random(w, 3.0, stream(7, "u"))
    series = ball.epsilon(u), ball.gradient(w, u)
    monkeypatch.setattr(geodesics, "_SERIES", 0.0)
    assert_close((ball.epsilon(u), ball.gradient(w, u)), series, rtol=1e-10, atol=1e-10)
    assert not torch.isfinite(ball.epsilon(u * 1e4)).all()  # and no error


def test_wrong_input():
    with pytest.raises(InputError, match="metric"):
        ball_at(point(), "euclid")
    with pytest.raises(InputError, match="scaling"):
        ball_at(point(), scaling="filterwise")
    with pytest.raises(InputError, match="two heads of attention at once"):
        ball_at(point(), heads=(HEAD, HEAD))
    with pytest.raises(InputError, match="every weight is zero"):
        ball_at(torch.zeros(LAYOUT.dimension, dtype=torch.float64))
