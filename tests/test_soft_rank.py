"""Soft rank against ridge regression and dense eigenvalues; Takeuchi's criterion against repeated samples."""

import math

import numpy as np
import pytest
import torch
from curvature_cases import case, dense_ggn, dense_hessian, everything
from sharpness_cases import bowl, trained
from sklearn.linear_model import Ridge
from torch import nn

import landscape
from landscape.curvature import damped, scores, stochastic
from landscape.errors import InputError
from landscape.random import rademacher, stream


def linear(x, y, weights):
    line = nn.Linear(x.shape[1], 1, bias=False).double()
    line.weight.data = torch.as_tensor(weights)[None].clone()
    return landscape.Problem(line, nn.MSELoss(), [(torch.as_tensor(x), torch.as_tensor(y)[:, None])])


def test_soft_rank_is_the_degrees_of_freedom_of_ridge_regression():
    generator = np.random.default_rng(0)
    n, d, alpha = 50, 7, 3.0
    x = generator.normal(size=(n, d)) * np.geomspace(0.03, 3, d)
    y = generator.normal(size=n)
    ridge = Ridge(alpha=alpha, fit_intercept=False)
    # Degrees of freedom are the trace of y -> fitted y, one unit vector after the other.
    degrees = sum(ridge.fit(x, unit).predict(x)[i] for i, unit in enumerate(np.eye(n)))
    problem = linear(x, y, ridge.fit(x, y).coef_)
    found = landscape.soft_rank(problem, damping=2 * alpha / n)
    assert found.value == pytest.approx(degrees, rel=1e-10)
    assert found.exact
    assert found.matrix == "hessian"
    assert found.hvps == d
    assert landscape.soft_rank(problem, damping=2 * alpha / n, matrix="ggn").value == pytest.approx(degrees, rel=1e-10)
    assert landscape.soft_rank(problem, damping=1.0, precision=2 * alpha).effective_dimension == pytest.approx(
        degrees, rel=1e-10
    )


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_all_eigenvalues_of_a_small_network(name):
    problem = case(name)
    found = landscape.soft_rank(problem, damping=0.05, matrix="ggn", probes=20, steps=30, precision=5.0)
    values = torch.linalg.eigvalsh(dense_ggn(problem))
    assert found.exact
    assert found.value == pytest.approx((values / (values + 0.05)).sum().item(), rel=1e-8)
    c = 5.0 / problem.examples
    assert found.effective_dimension == pytest.approx((values / (values + c)).sum().item(), rel=1e-8)
    np.testing.assert_array_equal(found.interval, found.value)
    gradients = per_example(problem)
    covariance = np.cov(gradients.numpy().T, bias=True)
    damped_inverse = np.linalg.inv(dense_ggn(problem).numpy() + 0.05 * np.eye(problem.dimension))
    assert found.takeuchi == pytest.approx(np.trace(covariance @ damped_inverse), rel=1e-7)
    assert found.gap == found.takeuchi / problem.examples


def per_example(problem):
    """(n, d) gradients of single examples, one backward pass each."""
    x, y = everything(problem)
    model = problem.model.eval()
    rows = []
    for i in range(len(x)):
        loss = nn.functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
        rows.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(model.parameters()))]))
    return torch.stack(rows)


def test_sampled_estimates_hold_the_truth_in_their_intervals():
    problem = case("mlp")
    exact = landscape.soft_rank(problem, damping=0.01, matrix="ggn", probes=20, steps=30, precision=1.0)
    names = ("value", "effective_dimension", "takeuchi")
    ends = ("interval", "effective_dimension_interval", "takeuchi_interval")
    held = dict.fromkeys(names, 0)
    for seed in range(12):
        found = landscape.soft_rank(problem, damping=0.01, matrix="ggn", probes=6, steps=15, precision=1.0, seed=seed)
        assert not found.exact
        assert found.hvps == 2 * 6 * 15
        for name, interval in zip(names, ends, strict=True):
            low, high = getattr(found, interval)
            assert low < getattr(found, name) < high
            held[name] += low <= getattr(exact, name) <= high
    # 12 intervals of 95%: fewer than 9 have a chance of 0.2%.
    assert min(held.values()) >= 9, held


@pytest.mark.parametrize("kept", [True, False])
def test_quadrature_bounds_enclose_the_form_and_close(kept, monkeypatch):
    """Also where the vectors do not fit in memory and the recurrence runs without them."""
    monkeypatch.setattr(stochastic, "fits", lambda like, vectors: kept)
    torch.manual_seed(0)
    root = torch.randn(30, 30, dtype=torch.float64) * torch.logspace(-2, 0, 30, dtype=torch.float64)
    a = root @ root.mT
    u = torch.randn(30, dtype=torch.float64)
    truth = (u @ torch.linalg.solve(a + 0.1 * torch.eye(30, dtype=torch.float64), u)).item()
    widths = []
    for steps in (2, 4, 8, 16):
        forms = damped.forms(lambda v: a @ v, u, [u], count=1, steps=steps, generator=stream(0, "x"))
        low, high = forms.inverse(0.1, -1e-12)[:, 0]
        assert low <= truth * (1 + 1e-12)
        assert high >= truth * (1 - 1e-12)
        widths.append(high - low)
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < (1e-4 if kept else 1e-3) * truth


def test_random_combinations_have_the_covariance_of_the_gradients():
    problem = case("mlp", sizes=(4, 3))
    gradients = per_example(problem)
    n, generator = len(gradients), stream(1, "signs")
    u = next(iter(scores.combinations(problem, None, 1, generator)))
    signs = rademacher(torch.empty(n, dtype=torch.float64), stream(1, "signs"))
    torch.testing.assert_close(u, ((signs - signs.mean()) / n**0.5) @ gradients)
    # All 2^7 signs: their mean square is the covariance itself.
    table = torch.tensor([[1.0 if i >> j & 1 else -1.0 for j in range(n)] for i in range(2**n)], dtype=torch.float64)
    centered = (table - table.mean(1, keepdim=True)) / n**0.5 @ gradients
    mean_square = centered.mT @ centered / len(table)
    torch.testing.assert_close(mean_square, scores.covariance(problem), rtol=1e-8, atol=1e-12)


def test_weights_of_the_examples_stand_squared_in_the_criterion():
    """Class weights: C = n sum_i (c_i / W)^2 s_i s_i' - g g', dense and by combinations; one target is ignored."""
    problem = case("mlp", loss=nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 5.0]).double(), ignore_index=-1))
    x, y = everything(problem)
    y = torch.where(torch.arange(len(y)) == 3, -1, y)
    problem = landscape.Problem(problem.model, problem.objective.loss, [(x[:10], y[:10]), (x[10:], y[10:])])
    unit = [nn.functional.cross_entropy(problem.model(x[i : i + 1]), y[i : i + 1].clamp(min=0)) for i in range(len(x))]
    slopes = torch.stack(
        [torch.cat([g.reshape(-1) for g in torch.autograd.grad(u, list(problem.model.parameters()))]) for u in unit]
    )
    c = torch.tensor([0.2, 1.0, 5.0]).double()[y.clamp(min=0)] * (y >= 0)
    n, counts = len(x) - 1, y >= 0
    rows = (slopes * (n * c / c.sum())[:, None])[counts]
    torch.testing.assert_close(rows.mean(0), problem.gradient())
    expected = rows.mT @ rows / n - rows.mean(0)[:, None] * rows.mean(0)
    torch.testing.assert_close(scores.covariance(problem), expected, rtol=1e-8, atol=1e-12)
    u = next(iter(scores.combinations(problem, None, 1, stream(1, "signs"))))
    signs = rademacher(torch.empty(n, dtype=torch.float64), stream(1, "signs"))
    torch.testing.assert_close(u, ((signs - signs.mean()) / n**0.5) @ rows)


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 3.0, 0.0]])
@pytest.mark.parametrize("steps", [60, 3])  # all eigenvalues, and Lanczos from random vectors
def test_ignored_examples_change_nothing(steps, weights, apart):
    """Nor do those of a class of weight 0; in the batch of the others, and in one of their own."""
    torch.manual_seed(0)
    model, x, y = nn.Linear(5, 4).double(), torch.randn(40, 5).double(), torch.arange(40) % 3
    loss = nn.CrossEntropyLoss(weight=None if weights is None else torch.tensor(weights).double())
    more = torch.randn(400, 5).double(), torch.full((400,), -100 if weights is None else 3)
    joined = [(x, y), more] if apart else [(torch.cat([x, more[0]]), torch.cat([y, more[1]]))]
    few, many = landscape.Problem(model, loss, [(x, y)]), landscape.Problem(model, loss, joined)
    assert (few.contributing(), many.contributing(), many.examples) == (40, 40, 440)
    first, second = (landscape.soft_rank(p, damping=0.05, probes=5, steps=steps, matrix="ggn") for p in (few, many))
    assert first.exact == (steps == 60)
    for name in ("value", "effective_dimension", "takeuchi", "gap", "takeuchi_interval"):
        np.testing.assert_allclose(getattr(second, name), getattr(first, name), rtol=1e-8, err_msg=name)


def test_a_function_that_may_ignore_labels_leaves_n_open():
    model, x, y = nn.Linear(5, 3).double(), torch.randn(8, 5).double(), torch.tensor([0, 1, 2, 0, 1, 2, -100, -100])

    def mean(outputs, targets):
        return nn.functional.cross_entropy(outputs, targets)

    def each(outputs, targets):
        return nn.functional.cross_entropy(outputs, targets, reduction="none")

    with pytest.raises(InputError, match=r"only labels of -100, .* leave them out, or give one of torch's losses$"):
        landscape.soft_rank(landscape.Problem(model, mean, [(x, y)]))
    assert landscape.Problem(model, mean, [(x[:6], y[:6])]).contributing() == 6
    assert landscape.Problem(model, each, [(x, y)]).contributing() == 8  # L divides by all
    # Negative numbers are labels of other losses; of tokens one that counts is enough; smoothing weighs a class of 0.
    signs = landscape.Problem(model, nn.SoftMarginLoss(), [(x, torch.ones(8, 3, dtype=torch.long).neg())])
    assert signs.contributing() == 8
    tokens = torch.tensor([[0, -100], [-100, -100], [1, 2]])
    pictures = nn.Sequential(nn.Linear(2, 6), nn.Unflatten(1, (3, 2))).double()
    assert landscape.Problem(pictures, nn.CrossEntropyLoss(), [(x[:3, :2], tokens)]).contributing() == 2
    smooth = nn.CrossEntropyLoss(weight=torch.tensor([0.0, 1, 1]).double(), label_smoothing=0.1)
    assert landscape.Problem(model, smooth, [(x, y)]).contributing() == 6


def test_a_models_loss_is_a_mean_over_the_examples_that_it_labels():
    class Labeled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(5, 3)

        def forward(self, x, labels):
            return {"loss": nn.functional.cross_entropy(self.layer(x), labels)}

    torch.manual_seed(0)
    x, y = torch.randn(12, 5), torch.arange(12) % 3
    y[8:] = -100
    problem = landscape.Problem(Labeled(), batches=[{"x": x, "labels": y}])
    assert (problem.contributing(), problem.examples) == (8, 12)


def test_takeuchi_is_the_gap_over_repeated_samples():
    """A ridge regression that does not fit, 4,000 samples: the mean gap against one large sample's criterion."""
    generator = np.random.default_rng(0)
    n, d, damping = 60, 4, 0.3
    scale = np.array([1.0, 1.0, 0.5, 0.2])

    def draw(count):
        x = generator.normal(size=(count, d)) * scale
        # The noise grows with |x|: the loss is no -log p, so that C and H differ.
        return x, x @ np.array([1.0, -1.0, 0.5, 2.0]) + 0.7 * generator.normal(size=count) * (0.3 + x[:, 0] ** 2)

    def fitted(x, y):
        return np.linalg.solve(2 * x.T @ x / len(x) + damping * np.eye(d), 2 * x.T @ y / len(x))

    large_x, large_y = draw(200_000)
    gaps = []
    for _ in range(4_000):
        x, y = draw(n)
        w = fitted(x, y)
        gaps.append(np.mean((large_x[:20_000] @ w - large_y[:20_000]) ** 2) - np.mean((x @ w - y) ** 2))
    w = fitted(large_x, large_y)
    found = landscape.soft_rank(linear(large_x[:8_000], large_y[:8_000], w), damping=damping)
    expected = found.takeuchi / n
    error = np.std(gaps) / math.sqrt(len(gaps))
    # Beyond 4 standard errors the second order in 1 / n, about d / n of it.
    assert abs(np.mean(gaps) - expected) < 4 * error + 0.15 * expected
    assert found.value / n < 0.6 * expected  # the soft rank is the gap of a calibrated model, which this is not


def test_a_hessian_with_negative_eigenvalues_is_refused_or_gauss_newtons():
    problem = case("mlp")
    values = torch.linalg.eigvalsh(dense_hessian(problem))
    assert values[0] < -0.01
    with pytest.raises(InputError, match=r'eigenvalue -0\.\d+.*take matrix="ggn"'):
        landscape.soft_rank(problem, damping=0.01, matrix="hessian", probes=10)
    auto = landscape.soft_rank(problem, damping=0.01)
    assert (auto.matrix, auto.label) == ("ggn", "Soft rank of the Gauss-Newton matrix")
    assert auto.obstacle.startswith("the Hessian has an eigenvalue -0.")
    assert auto.negative == pytest.approx(0, abs=1e-9)
    large = -20 * values[0].item()
    plain = landscape.soft_rank(problem, damping=large, precision=large * problem.examples)
    assert plain.matrix == "hessian"
    assert plain.value == pytest.approx((values / (values + large)).sum().item(), rel=1e-8)
    below = values.clamp(max=0)
    assert plain.negative == pytest.approx((below / (below + large)).sum().item(), rel=1e-8)


def test_the_smaller_of_the_two_dampings_decides_what_is_refused():
    """A Hessian whose negative eigenvalue the damping bears, and the prior of the effective dimension does not."""
    problem = case("mlp")
    large = -20 * torch.linalg.eigvalsh(dense_hessian(problem))[0].item()
    assert landscape.soft_rank(problem, damping=large, precision=large * problem.examples).matrix == "hessian"
    assert landscape.soft_rank(problem, damping=large, precision=0.01).matrix == "ggn"


def test_a_function_of_the_weights_alone():
    """No outputs and no examples that differ: the Hessian serves, and the criterion says why it is missing."""
    problem, a, _ = bowl(d=6)
    values = torch.linalg.eigvalsh(a)
    objective = landscape.Problem(problem.model, batches=[torch.zeros(4, 1)], objective=lambda m, x: m(x).mean())
    found = landscape.soft_rank(objective, damping=0.5)
    assert found.value == pytest.approx((values / (values + 0.5)).sum().item(), rel=1e-8)
    assert found.takeuchi is None
    assert found.takeuchi_obstacle
    assert landscape.soft_rank(objective, damping=0.5, takeuchi=False).takeuchi_obstacle is None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"damping": 0.0}, "damping=0"),
        ({"precision": -1.0}, "precision=-1"),
        ({"matrix": "hesian"}, "did you mean 'hessian'"),
        ({"probes": 3}, "at least 4"),
        ({"steps": 0}, "at least 1"),
        ({"damping": 1e-20, "matrix": "ggn", "probes": 20}, "by rounding"),
    ],
)
def test_wrong_arguments_are_refused(arguments, says):
    _, problem = trained()
    with pytest.raises(InputError, match=says):
        landscape.soft_rank(problem, **arguments)
