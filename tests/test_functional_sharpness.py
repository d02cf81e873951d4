"""The functional and the logit path of sharpness: closed forms, dense matrices, and the method that follows one."""

from __future__ import annotations

import pytest
import torch
from curvature_cases import case, dense_ggn, dense_hessian, everything, problem_of
from torch import nn

import landscape
from landscape.errors import InputError
from trainers import METHODS, Context, Task


class Product(nn.Module):
    """f = a b x."""

    def __init__(self, a, b):
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.tensor([v], dtype=torch.float64)) for v in (a, b))

    def forward(self, x):
        return self.a * self.b * x


@pytest.mark.parametrize(("a", "b", "target"), [(2.0, 1.0, 5.0), (0.5, -3.0, 0.25), (1.0, 0.0, -2.0)])
def test_closed_form_of_a_product(a, b, target):
    """L = (ab - t)^2: (H - G) g^ = 2 r (a, b) / s and G g^ = 2 s (b, a) up to signs, s^2 = a^2 + b^2, r = ab - t."""
    x = torch.ones(4, 1, dtype=torch.float64)
    problem = landscape.Problem(Product(a, b), nn.MSELoss(), [(x, target * x)])
    found = landscape.functional_sharpness(problem)
    r, square = a * b - target, a * a + b * b
    assert found.value == pytest.approx(2 * abs(r), rel=1e-12)
    assert found.logit == pytest.approx(2 * square, rel=1e-12)
    assert found.logit_curvature == pytest.approx(2 * square, rel=1e-12)
    assert found.curvature == pytest.approx(4 * r * a * b / square, rel=1e-12, abs=1e-14)
    assert found.share == pytest.approx(abs(r) / (abs(r) + square), rel=1e-12)
    assert found.gradient_norm == pytest.approx(2 * abs(r) * square**0.5, rel=1e-12)
    assert found.loss == pytest.approx(r * r, rel=1e-12)


@pytest.mark.parametrize("name", ["cnn", "vit"])
def test_paths_are_those_of_the_dense_matrices(name):
    problem = case(name)
    h, g = dense_hessian(problem), dense_ggn(problem)
    unit = problem.gradient() / problem.gradient().norm()
    found = landscape.functional_sharpness(problem)
    assert found.value == pytest.approx(((h - g) @ unit).norm().item(), rel=1e-7)
    assert found.logit == pytest.approx((g @ unit).norm().item(), rel=1e-8)
    assert found.total == pytest.approx((h @ unit).norm().item(), rel=1e-8)
    assert found.curvature == pytest.approx((unit @ (h - g) @ unit).item(), rel=1e-7)
    directional = landscape.directional_sharpness(problem).value
    assert found.curvature + found.logit_curvature == pytest.approx(directional, rel=1e-8)


def test_a_linear_model_has_no_functional_path():
    problem = problem_of(nn.Linear(6, 3))
    found = landscape.functional_sharpness(problem)
    assert found.value < 1e-14 * found.logit
    assert found.share < 1e-14
    assert found.logit > 1e-3


def test_functional_sam_follows_the_functional_path():
    """(its gradient - g) / rho is (H - G) g^ to first order: half of the radius halves the distance from it."""
    problem = problem_of(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)))
    gradient = problem.gradient()
    unit = gradient / gradient.norm()
    path = (dense_hessian(problem) - dense_ggn(problem)) @ unit
    batch, distances = everything(problem), []
    for rho in (1e-3, 5e-4):
        task = Task(problem.model, nn.CrossEntropyLoss(reduction="none"))
        METHODS["functional-sam"](rho=rho).gradient(task.step(batch, Context()), {})
        moved = torch.cat([p.grad.reshape(-1) for p in problem.model.parameters()])
        distances.append(((moved - gradient) / rho - path).norm().item() / path.norm().item())
    assert distances[0] < 1e-2
    assert distances[1] == pytest.approx(distances[0] / 2, rel=0.05)
    assert landscape.functional_sharpness(problem).value == pytest.approx(path.norm().item(), rel=1e-8)


def test_differences_serve_in_the_place_of_second_derivatives():
    problem = case("mlp")
    exact, near = (landscape.functional_sharpness(problem, hvp=h) for h in ("double-backward", "differences"))
    assert near.value == pytest.approx(exact.value, rel=1e-4)  # central differences in float64


def test_a_minimum_is_refused():
    x = torch.ones(4, 1, dtype=torch.float64)
    with pytest.raises(InputError, match="the gradient is zero: SAM has no direction here"):
        landscape.functional_sharpness(landscape.Problem(Product(2.0, 1.0), nn.MSELoss(), [(x, 2 * x)]))
