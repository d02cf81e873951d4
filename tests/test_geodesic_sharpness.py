"""Geodesic sharpness: closed forms, an independent search, and attention whose heads are mapped by hand."""

import copy
import functools
import math

import numpy as np
import pytest
import torch
from attention_cases import mapped_by_hand, network, rotary, tokens
from scipy.optimize import minimize
from torch import nn
from torch.testing import assert_close

import landscape
from landscape.errors import InputError
from landscape.invariance.geodesics import geodesic_ball
from landscape.invariance.rescaling import Head, Part
from landscape.sharpness.options import BallOptions
from landscape.sharpness.sharpness import ball_sharpness

LABELS = torch.tensor([0, 1, 1, 0, 1])


def problem_of(model, **options):
    return landscape.Problem(model, nn.functional.cross_entropy, [(tokens(), LABELS)], **options)


class Diagonal(nn.Module):
    """x -> x (u v)."""

    def __init__(self, u, v):
        super().__init__()
        self.u, self.v = nn.Parameter(u), nn.Parameter(v)

    def forward(self, x):
        return x @ (self.u * self.v)


def diagonal(u, v, target):
    """||X (u v) - y||^2 with X'X = 1 and X target the part of y that X reaches."""
    draws = torch.randn(6, len(u) + 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    basis = torch.linalg.qr(draws).Q
    x, y = basis[:, :-1], basis[:, :-1] @ target + 0.3 * basis[:, -1]
    return landscape.Problem(Diagonal(u, v), lambda out, y: len(y) * (out - y).square(), [(x, y)])


U = torch.tensor([0.8, -1.5, 0.4], dtype=torch.float64)
V = torch.tensor([1.1, 0.6, -2.0], dtype=torch.float64)
TARGET = torch.tensor([0.2, -0.5, -1.3], dtype=torch.float64)
SEPARATE = tuple(Head((Part("u", 0, (i,), False), Part("v", 0, (i,), True)), (0,), ()) for i in range(3))


def test_diagonal_network_to_first_order():
    problem, rho, b = diagonal(U, V, TARGET), 0.01, U * V
    first = 2 * math.sqrt(2) * rho * torch.linalg.vector_norm(b * (b - TARGET)).item()
    geodesic = landscape.geodesic_sharpness(problem, rho=rho)
    assert_close(geodesic.first_order[0], first, rtol=1e-12, atol=0)
    assert_close(landscape.adaptive_sharpness(problem, rho=rho).first_order[0], first, rtol=1e-12, atol=0)
    # Not 4 rho ||b (b - b*)||, which is 1.41 times that: what is found on the small ball tells them apart.
    assert_close(geodesic.value, first, rtol=0.03, atol=0)


def test_diagonal_network_exactly_in_inv():
    """b moves to b exp(2 s), ||(s, s)||^2 = 2 s's <= rho^2."""
    problem, rho, b = diagonal(U, V, TARGET), 0.5, (U * V).numpy()

    def at(t):
        return rho / math.sqrt(2) * t / max(1.0, np.linalg.norm(t))

    def fall(t):
        s = at(t)
        return -((b * np.exp(2 * s) - TARGET.numpy()) ** 2).sum()

    starts = torch.randn(10, 3, generator=torch.Generator().manual_seed(0)).double().numpy()
    best = max(-minimize(fall, s, method="Nelder-Mead", tol=1e-12).fun for s in starts)
    exact = best - ((b - TARGET.numpy()) ** 2).sum()
    # The last digits of an ascent of 60 steps.
    assert_close(landscape.geodesic_sharpness(problem, rho=rho, steps=60).value, exact, rtol=1e-5, atol=0)


def test_diagonal_network_exactly_in_mix():
    """Heads of size 1: b moves on straight lines, by at most sqrt(2) rho."""
    problem, rho, b = diagonal(U, V, 0.5 * U * V), 0.2, U * V
    ball = geodesic_ball(problem.parameters, problem.weights, SEPARATE, metric="mix")
    found = ball_sharpness(problem, BallOptions(rho, steps=60), value="worst_case", ball=ball)
    distance = torch.linalg.vector_norm(0.5 * b).item()
    exact = (distance + math.sqrt(2) * rho) ** 2 - distance**2
    assert_close(found.first_order[0], 2 * math.sqrt(2) * rho * distance, rtol=1e-10, atol=0)
    # STEPS of an order 4 method, and the last digits of the ascent.
    assert_close(found.value, exact, rtol=1e-6, atol=0)


def test_pairs_of_numbers_are_the_same_geometry_as_their_logarithms():
    problem = diagonal(U, V, TARGET)
    ball = geodesic_ball(problem.parameters, problem.weights, SEPARATE)
    heads = ball_sharpness(problem, BallOptions(0.3, steps=40), value="worst_case", ball=ball)
    assert_close(heads.value, landscape.geodesic_sharpness(problem, rho=0.3, steps=40).value, rtol=1e-9, atol=0)


def metric_of(layout, w):
    """The bilinear form of inv at w as a dense matrix, built head by head from the network's names."""
    tensors = dict(zip(layout.names, layout.unflatten(w), strict=True))
    size, scale = 4, torch.zeros(layout.dimension, layout.dimension, dtype=torch.float64)
    places = {s.name: torch.arange(s.start, s.stop).view(s.shape) for s in layout}
    for name in layout.names:
        if name.split(".")[0] not in "qkvo" or name == "o.bias":
            at = places[name].reshape(-1)
            scale[at, at] = 1 / w[at].square()
    for one in (slice(0, size), slice(size, 2 * size)):
        for letter in "qkvo":
            if letter == "o":
                rows, here = tensors["o.weight"][:, one], places["o.weight"][:, one]
            else:
                rows = torch.cat([tensors[f"{letter}.weight"][one], tensors[f"{letter}.bias"][one, None]], 1).T
                here = torch.cat([places[f"{letter}.weight"][one], places[f"{letter}.bias"][one, None]], 1).T
            inverse = torch.linalg.inv(rows.T @ rows)
            for line in here:
                scale[line[:, None], line] = inverse
    return scale


def test_first_order_is_the_dual_norm_of_the_dense_metric():
    problem = problem_of(network())
    g, matrix = problem.gradient(), metric_of(problem.parameters, problem.weights)
    found = landscape.geodesic_sharpness(problem, rho=0.01, steps=2, restarts=1)
    assert found.heads == 4
    assert_close(found.first_order[0], 0.01 * (g @ torch.linalg.solve(matrix, g)).sqrt().item(), rtol=1e-9, atol=0)


def test_worst_case_beside_a_search_over_all_geodesics():
    """Shots from the metric of inv alone, horizontal or not: the ball of the quotient holds no higher point."""
    problem, rho = problem_of(network()), 0.3
    w, layout = problem.weights, problem.parameters
    root = torch.linalg.cholesky(torch.linalg.inv(metric_of(layout, w)))
    index = dict(zip(layout.names, layout.unflatten(torch.arange(layout.dimension)), strict=True))
    halves = (slice(0, 4), slice(4, 8))
    made = [torch.cat([index[f"{n}.weight"][i], index[f"{n}.bias"][i, None]], 1).T for n in "qkv" for i in halves]
    blocks = torch.stack(made), torch.stack([index["o.weight"][:, i] for i in halves])

    def shoot(xi, steps=8):
        """Runge and Kutta on G'' = x S^-1 (x'G + G'x) - G S^-1 x'x, S = G'G."""
        end = w * torch.exp(xi / w)
        for block in blocks:
            g, x = w[block], xi[block]

            def force(g, x):
                inverse = torch.linalg.inv(g.mT @ g)
                return x @ inverse @ (x.mT @ g + g.mT @ x) - g @ inverse @ x.mT @ x

            for _ in range(steps):
                t = 1 / steps
                k1, l1 = x, force(g, x)
                k2, l2 = x + t / 2 * l1, force(g + t / 2 * k1, x + t / 2 * l1)
                k3, l3 = x + t / 2 * l2, force(g + t / 2 * k2, x + t / 2 * l2)
                k4, l4 = x + t * l3, force(g + t * k3, x + t * l3)
                g, x = g + t / 6 * (k1 + 2 * k2 + 2 * k3 + k4), x + t / 6 * (l1 + 2 * l2 + 2 * l3 + l4)
            end = end.index_put((block,), g)
        return end

    def loss(end):
        state = dict(zip(layout.names, layout.unflatten(end), strict=True))
        return nn.functional.cross_entropy(torch.func.functional_call(problem.model, state, (tokens(),)), LABELS)

    best = 0.0
    for seed in range(2):
        z = torch.randn(layout.dimension, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        z = (root.T @ problem.gradient() + 0.1 * seed * z).requires_grad_()
        optimizer = torch.optim.Adam([z], lr=0.05)
        with torch.no_grad():
            z /= z.norm()
        for _ in range(40):
            rise = loss(shoot(root @ (rho * z / z.norm()))) - loss(w)
            best = max(best, rise.item())
            optimizer.zero_grad()
            (-rise).backward()
            optimizer.step()
    found = landscape.geodesic_sharpness(problem, rho=rho, steps=60)
    # Both searches stop short of the maximum by less than this.
    assert_close(found.value, best, rtol=5e-3, atol=0)


@pytest.mark.parametrize("metric", ["inv", "mix"])
@pytest.mark.parametrize("options", [{}, {"heads": 4, "key_heads": 2, "bias": False}, {"width": 3, "bias": False}])
def test_maps_by_hand_leave_it(options, metric):
    model = network(**options)
    if metric == "mix" and options.get("width") == 3:
        with pytest.raises(InputError, match="rank 3 for 4 dimensions"):
            landscape.geodesic_sharpness(problem_of(model), metric=metric)
        return
    other = copy.deepcopy(model)
    other.load_state_dict(mapped_by_hand(model))
    problems = [problem_of(m) for m in (model, other)]
    rho = (0.05, 0.3)
    first, second = (landscape.geodesic_sharpness(p, rho=rho, metric=metric) for p in problems)
    assert_close(second.sharpness, first.sharpness, rtol=1e-9, atol=0)
    assert_close(second.first_order, first.first_order, rtol=1e-9, atol=0)
    assert (first.value, first.heads, first.refused) == (first.worst_case[0], 4, 0)
    for varies in (landscape.adaptive_sharpness, landscape.sam_sharpness, landscape.worst_case_sharpness):
        values = [varies(p).value for p in problems]
        assert abs(values[1] - values[0]) > 1e-2 * abs(values[0])


def test_rotary_heads():
    model = network(position=functools.partial(rotary, width=4), bias=False)
    symmetries = landscape.rescaling.find(model, tokens())
    maps = symmetries.sample_maps(torch.Generator().manual_seed(0))
    ones = torch.ones(symmetries.dimension, dtype=torch.float64)
    problem = problem_of(model)
    other = problem.relocated(symmetries.apply(problem.weights, ones, maps=maps).weights)
    first, second = landscape.geodesic_sharpness(problem), landscape.geodesic_sharpness(other)
    assert_close(second.value, first.value, rtol=1e-9, atol=0)


def test_without_heads_it_is_the_rescaled_ball():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    problem = problem_of(model)
    geodesic = landscape.geodesic_sharpness(problem, rho=(0.2, 0.1))
    assert geodesic.heads == geodesic.head_parameters == 0
    adaptive = landscape.adaptive_sharpness(problem, rho=(0.2, 0.1))
    assert_close(geodesic.first_order, adaptive.first_order, rtol=1e-12, atol=0)
    assert geodesic.sharpness[0] > geodesic.sharpness[1] > 0
    plain = landscape.geodesic_sharpness(problem, rho=0.1, scaling="identity", steps=30)
    assert_close(plain.value, landscape.worst_case_sharpness(problem, rho=0.1, steps=30).value, rtol=1e-12, atol=0)


def test_frozen_parameters_and_norms_leave_heads_out():
    model = network(norm=nn.RMSNorm)
    assert landscape.geodesic_sharpness(problem_of(model)).heads == 2
    model = network()
    model.o.weight.requires_grad_(False)
    found = landscape.geodesic_sharpness(problem_of(model))
    assert found.heads == 2
    assert found.head_parameters == 2 * 8 * 7  # queries and keys of width 6 with biases


def test_groups_and_intervals():
    problem = problem_of(network())
    groups = landscape.geodesic_sharpness(problem, rho=0.2, m=1, steps=6, restarts=1)
    each = [
        landscape.geodesic_sharpness(problem.with_batches([b]), rho=0.2, steps=6, restarts=1).value
        for b in (next(iter(problem.batches)).rows(i, i + 1) for i in range(5))
    ]
    assert_close(groups.groups[:, 0], np.array(each), rtol=1e-9, atol=0)
    assert groups.interval is not None


def test_a_model_that_cannot_be_traced_takes_hints():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.gate = network(), Gate()

        def forward(self, x):
            return self.gate(self.inner(x))

    class Gate(nn.Module):
        def forward(self, x):
            return x if x.sum() > 1e9 else 0.5 * x

    problem = problem_of(Branching())
    with pytest.raises(InputError, match="hints"):
        landscape.geodesic_sharpness(problem)
    assert landscape.geodesic_sharpness(problem, hints="gate=opaque").heads == 4
    with pytest.raises(InputError, match="MODULE=KIND is needed"):
        landscape.geodesic_sharpness(problem, hints="gate")


def test_an_objective_hides_the_inputs():
    def objective(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    problem = landscape.Problem(network(), batches=[(tokens(), LABELS)], objective=objective)
    with pytest.raises(InputError, match="an objective function hides"):
        landscape.geodesic_sharpness(problem)
