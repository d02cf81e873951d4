"""Spectral density, layers' blocks and both ends of the spectrum against dense Hessians."""

import numpy as np
import pytest
import torch
from curvature_cases import case, dense_hessian, dense_of
from torch import nn

import landscape
from landscape import random
from landscape.curvature import operators, stochastic
from landscape.curvature.products.hessian_graph import HessianGraph
from landscape.errors import InputError
from landscape.measures import spectral_density as module
from landscape.measures.layer_eigenvalues import layer_eigenvalues


def symmetric(values, seed=0):
    d = len(values)
    q = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))[0]
    return q @ torch.diag(torch.as_tensor(values, dtype=torch.float64)) @ q.T


@pytest.mark.parametrize("name", ["mlp", "cnn", "vit"])
def test_moments_are_the_trace_and_the_frobenius_norm(name):
    problem = case(name)
    dense = dense_of(name)
    found = landscape.spectral_density(problem, probes=40, steps=3)
    d = problem.dimension
    exact = [float(dense.trace()) / d, float(dense.square().sum()) / d]
    assert np.all(np.abs(found.moment_values - exact) <= 4 * found.moment_stderr)
    assert np.all(found.moment_stderr < 0.5 * np.abs(exact))  # so the line above can fail
    assert found.hvps == found.cost["hvp"] == 120


@pytest.mark.parametrize("width", [None, 0.02, 0.3])
def test_the_density_integrates_to_one_on_both_axes(width):
    found = landscape.spectral_density(case("mlp"), probes=10, steps=30, width=width)
    assert np.trapezoid(found.density, found.axis) == pytest.approx(1, abs=1e-6)
    both = found.log_positive + found.log_negative
    assert np.trapezoid(both, found.log_axis) == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(found.weights.sum(1), 1, rtol=1e-12)
    assert np.all(found.low <= found.high)
    assert np.all(found.density >= 0)


def test_weights_are_squared_first_components():
    """Quadrature of degree 2m - 1: z'A^p z / d is exact for each probe, for every power up to that."""
    a = symmetric(np.linspace(-1, 2, 50))
    like = torch.empty(50, dtype=torch.float64)
    found = stochastic.quadrature(lambda v: a @ v, like, probes=3, steps=4, generator=random.stream(0, "q"))
    generator = random.stream(0, "q")
    for probe in range(3):
        z = random.rademacher(like, generator)
        for power in range(8):
            exact = float(z @ torch.linalg.matrix_power(a, power) @ z) / 50
            assert found.moments(power)[probe] == pytest.approx(exact, rel=1e-10)


def test_the_smoothed_density_is_that_of_the_eigenvalues():
    values = np.concatenate([np.linspace(0, 1, 150), np.linspace(-0.2, -0.1, 20), [3.0] * 30])
    a = symmetric(values)
    found = stochastic.quadrature(
        lambda v: a @ v, torch.empty(200, dtype=torch.float64), probes=100, steps=30, generator=random.stream(0, "q")
    )
    axis, width = np.linspace(-1, 4, 500), 0.1
    rows = stochastic.smoothed(found.nodes, found.weights, axis, width)
    exact = stochastic.smoothed(values[None], np.full((1, 200), 1 / 200), axis, width)[0]
    error = np.abs(rows.mean(0) - exact)
    assert np.all(error <= 4.5 * rows.std(0, ddof=1) / np.sqrt(100) + 1e-3)
    assert error.max() < 0.05 * exact.max()


def test_the_logarithmic_axis_separates_the_signs():
    values = np.concatenate([10.0 ** np.linspace(-4, 0, 90), -(10.0 ** np.linspace(-3, -2, 30))])
    a = symmetric(values)
    found = stochastic.quadrature(
        lambda v: a @ v, torch.empty(120, dtype=torch.float64), probes=20, steps=120, generator=random.stream(0, "q")
    )
    log = module._logarithmic(found, 1024, 0.1, 1e-16)
    positive, negative = (np.trapezoid(log[k], log["log_axis"]) for k in ("log_positive", "log_negative"))
    assert positive == pytest.approx(0.75, abs=0.03)  # 20 probes of 120 eigenvalues: 0.75 +- 0.01
    assert positive + negative == pytest.approx(1, abs=1e-6)
    mean = np.trapezoid(log["log_axis"] * log["log_negative"], log["log_axis"]) / negative
    assert mean == pytest.approx(-2.5, abs=0.1)


def test_more_steps_than_parameters_are_capped():
    a = torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    found = stochastic.quadrature(
        lambda v: a @ v, torch.empty(3, dtype=torch.float64), probes=5, steps=80, generator=random.stream(0, "q")
    )
    assert found.nodes.shape == (5, 3)
    np.testing.assert_allclose(found.nodes, [[1, 2, 3]] * 5, rtol=1e-12)
    np.testing.assert_allclose(found.weights, 1 / 3, rtol=1e-12)


def test_without_reorthogonalization_the_density_is_nearly_the_same():
    a = symmetric(np.concatenate([np.linspace(0, 1, 190), [5.0] * 5, [10.0] * 5]))
    runs = [
        stochastic.quadrature(
            lambda v: a @ v,
            torch.empty(200, dtype=torch.float64),
            probes=4,
            steps=60,
            reorthogonalize=keep,
            generator=random.stream(0, "q"),
        )
        for keep in (True, False)
    ]
    axis = np.linspace(-1, 11, 600)
    first, second = (stochastic.smoothed(r.nodes, r.weights, axis, 0.2).mean(0) for r in runs)
    np.testing.assert_allclose(second, first, atol=2e-3)
    np.testing.assert_allclose(runs[1].moments(2), runs[0].moments(2), rtol=1e-9)


def test_memory_decides_on_reorthogonalization(monkeypatch):
    problem = case("mlp")
    assert landscape.spectral_density(problem, probes=4, steps=5).reorthogonalized
    monkeypatch.setattr(stochastic, "free_memory", lambda device: 1000.0)
    assert not landscape.spectral_density(problem, probes=4, steps=5).reorthogonalized


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"probes": 2}, "at least 4 probes"),
        ({"steps": 0}, "at least 1 Lanczos step"),
        ({"points": 3}, "at least 16 points"),
        ({"width": -1.0}, "width must be > 0"),
        ({"width": 1e-6, "probes": 4, "steps": 4}, "points are needed"),
        ({"log_width": 1e-6, "probes": 4, "steps": 4}, "log_width"),
        ({"matrix": "hesian"}, "did you mean 'hessian'"),
    ],
)
def test_wrong_arguments(kwargs, text):
    with pytest.raises(InputError, match=text):
        landscape.spectral_density(case("mlp"), **kwargs)


def test_files(tmp_path):
    problem = case("mlp")
    for name, found in {
        "density": landscape.spectral_density(problem, probes=4, steps=5),
        "layers": layer_eigenvalues(problem),
        "ends": landscape.extreme_eigenvalues(problem),
    }.items():
        path = tmp_path / f"{name}.h5"
        found.save(path)
        again = landscape.load(path)
        assert type(again) is type(found)
        assert again.summary() == found.summary()


# -- layers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "cnn", "vit"])
def test_every_layer_has_the_eigenvalues_of_its_own_block(name):
    problem = case(name)
    dense = dense_of(name)
    found = layer_eigenvalues(problem, k=2, tol=1e-8)
    slots = problem.parameters.slots
    assert found.converged
    for row, (layer, own) in enumerate(operators.layers(problem).items()):
        index = torch.cat([torch.arange(slots[i].start, slots[i].stop) for i in own])
        exact = torch.linalg.eigvalsh(dense[index][:, index]).flip(0)[:2]
        assert found.layers[row] == layer
        assert found.sizes[row] == len(index)
        np.testing.assert_allclose(found.values[row][: len(exact)], exact, rtol=1e-7, atol=1e-12)


def test_a_block_is_not_what_a_full_product_holds():
    problem = case("mlp")
    graph = HessianGraph(problem)
    dense = dense_hessian(problem)
    own = torch.arange(problem.parameters.slots[2].start, problem.parameters.slots[2].stop)
    v = torch.zeros_like(problem.weights)
    v[own] = 1.0
    part = graph.product(v[own], [2])
    torch.testing.assert_close(part, (dense @ v)[own])
    everywhere = random.normal(v, random.stream(0, "v"))
    inside = graph.product(everywhere[own], [2])
    assert torch.linalg.vector_norm((dense @ everywhere)[own] - inside) > 0.1 * torch.linalg.vector_norm(inside)


def test_only_layers_with_a_weight():
    problem = case("cnn")
    assert layer_eigenvalues(problem, kind="weight").layers == ["0", "3", "8"]
    assert layer_eigenvalues(problem).layers == ["0", "1", "3", "4", "8"]


# -- both ends -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "cnn", "vit"])
def test_both_ends_within_their_bounds(name):
    problem = case(name)
    exact = torch.linalg.eigvalsh(dense_of(name))
    found = landscape.extreme_eigenvalues(problem, tol=1e-3)
    assert abs(found.lambda_min - float(exact[0])) <= found.bound_min
    assert abs(found.lambda_max - float(exact[-1])) <= found.bound_max
    assert max(found.bound_min, found.bound_max) <= 1.001e-3 * float(exact.abs().max())
    assert found.ratio == pytest.approx(abs(found.lambda_min / found.lambda_max))


def test_a_convex_loss_has_no_negative_curvature():
    x = torch.randn(20, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    problem = landscape.Problem(nn.Linear(4, 3).double(), nn.CrossEntropyLoss(), [(x, torch.arange(20) % 3)])
    found = landscape.extreme_eigenvalues(problem, tol=1e-9)
    assert found.lambda_min > -1e-12  # three zeros: adding the same vector to every class changes nothing
    assert found.ratio < 1e-12


# -- edge of stability -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_gradient_descent_ends_at_the_edge_of_stability():
    """Full-batch gradient descent with step eta drives lambda_max to just above 2 / eta (Cohen 2021)."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images[:300], dtype=torch.float32)
    x = (x - x.mean()) / x.std()
    y = torch.tensor(labels[:300])
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 10))

    def squared(outputs, targets):
        return 0.5 * ((outputs - nn.functional.one_hot(targets, 10)) ** 2).sum(1)

    eta, seen, start = 0.1, [], None
    optimizer = torch.optim.SGD(model.parameters(), lr=eta)
    for step in range(2001):
        if step % 200 == 0:
            problem = landscape.Problem(model, squared, [(x, y)], check=False)
            found = landscape.top_eigenvalues(problem, k=1, start=start)
            start = found.vectors
            seen.append(float(found.values[0]))
        optimizer.zero_grad()
        squared(model(x), y).mean().backward()
        optimizer.step()
    edge = 2 / eta
    assert seen[0] < 0.6 * edge  # far below at first ...
    assert all(0.95 * edge < v < 1.1 * edge for v in seen[-5:])  # ... and at the edge at the end
