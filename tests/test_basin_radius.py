"""Radius of the basin, on bowls in closed form."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sharpness_cases import Bowl, bowl, first_output, trained
from torch import nn

import landscape
from landscape.errors import InputError
from landscape.measures.basin_radius import _direction, _quantile_interval, crossing


def test_radii_of_a_bowl():
    problem, a, _ = bowl(d=12, stationary=True)
    found = landscape.basin_radius(problem, rise=0.2, tol=1e-6, directions=20)
    u = torch.stack([_direction(problem.weights, 0, i) for i in range(20)])
    expected = torch.sqrt(0.4 / torch.einsum("ia,ab,ib->i", u, a, u))
    np.testing.assert_allclose(found.radii, expected, rtol=1e-6)
    assert found.value == pytest.approx(np.sort(expected)[4], rel=1e-6)  # 15 of 20 directions reach at least as far
    assert found.sigma == pytest.approx(found.value / math.sqrt(12))
    assert math.isnan(found.relative)  # w = 0


def test_worst_case_of_a_bowl_with_a_slope():
    """Off the minimum, where the first step already points somewhere; 200 points of ascent."""
    a = torch.diag(torch.tensor([4.0, 1.0, 0.1], dtype=torch.float64))
    w = torch.tensor([0.3, 0.1, 1.0], dtype=torch.float64)
    problem = landscape.Problem(Bowl(a, torch.zeros_like(w), w), first_output, [(torch.zeros(4, 1), torch.zeros(4))])
    found = landscape.basin_radius(problem, rise=0.5, tol=1e-4, steps=200)
    # The nearest point of the ellipsoid w'Aw / 2 = L + 0.5, by brute force over the sphere of directions.
    points = torch.randn(400_000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    u = points / points.norm(dim=1, keepdim=True)
    square, slope = torch.einsum("ia,ab,ib->i", u, a, u) / 2, u @ a @ w
    nearest = ((-slope + torch.sqrt(slope**2 + 4 * square * 0.5)) / (2 * square)).min().item()
    assert found.worst_case == pytest.approx(nearest, rel=1e-3)
    assert found.worst_case < found.radii.min()


def test_worst_case_of_a_bowl_at_its_minimum():
    """The gradient is 0 there: it is the random start that ascends."""
    problem, a, _ = bowl(d=12)
    top, w = torch.linalg.eigvalsh(a)[-1].item(), problem.weights
    at_minimum = landscape.Problem(Bowl(a, -a @ w, w), first_output, [(torch.zeros(4, 1), torch.zeros(4))])
    found = landscape.basin_radius(at_minimum, rise=0.2, tol=1e-3, steps=100)
    assert found.relative == pytest.approx(found.value / w.norm().item())
    assert found.worst_case == pytest.approx(math.sqrt(0.4 / top), rel=2e-3)
    assert found.summary()["worst_case"] == found.worst_case


def test_crossing_is_the_first_at_a_factor_of_two():
    seen = []

    def outside(r):
        seen.append(r)
        return 1.5 < r < 3.5 or r > 100

    assert crossing(outside, 0.01, 1e3, 1e-6) == pytest.approx(1.5, rel=1e-6)
    assert crossing(lambda r: r > 1e-9, 1.0, 1e3, 1e-6) == pytest.approx(1e-9, rel=1e-6)
    assert crossing(lambda r: False, 1.0, 1e3, 0.1) == math.inf
    assert crossing(lambda r: True, 1.0, 1e3, 0.1) == 0.0
    assert crossing(lambda r: r > 999, 1.0, 1e3, 1e-6) == pytest.approx(999, rel=1e-6)  # the bound is looked at
    assert max(seen) < 4


def test_interval_of_a_quantile_covers_it():
    generator = np.random.default_rng(0)
    truth = stats.expon.ppf(0.25)
    intervals = [_quantile_interval(generator.exponential(size=20), 0.25) for _ in range(2_000)]
    covered = np.mean([low <= truth <= high for low, high in intervals])
    assert covered > 0.94  # order statistics are conservative
    assert _quantile_interval(np.ones(3), 0.25)[0] == 0.0  # three directions bound it from one side at most


def test_a_loss_that_is_nowhere_higher_has_no_edge():
    model = nn.Linear(2, 2, bias=False).double()
    problem = landscape.Problem(model, lambda o, t: torch.sigmoid(o.sum()) * 0.05, [(torch.ones(3, 2), torch.zeros(3))])
    found = landscape.basin_radius(problem, rise=0.1, directions=4, worst_case=False)
    assert found.value == math.inf
    assert found.summary()["value"] is None


def test_small_weights_do_not_end_the_search():
    """||w|| = 1e-4, radii of sqrt(2 rise) = 0.447: 4,472 times as far."""
    w = torch.tensor([1e-4, 0.0], dtype=torch.float64)
    bowl_there = Bowl(torch.eye(2, dtype=torch.float64), torch.zeros_like(w), w)
    problem = landscape.Problem(bowl_there, first_output, [(torch.zeros(4, 1), torch.zeros(4))])
    found = landscape.basin_radius(problem, rise=0.1, tol=1e-6)
    np.testing.assert_allclose(found.radii, math.sqrt(0.2), rtol=3e-4)
    assert found.worst_case == pytest.approx(math.sqrt(0.2) - 1e-4, rel=2e-5)
    assert found.interval == pytest.approx(math.sqrt(0.2), rel=3e-4)


def test_a_rise_below_the_rounding_of_the_loss_is_refused():
    model = nn.Linear(2, 1, bias=False)
    nn.init.constant_(model.weight, 0.1)
    problem = landscape.Problem(model, lambda o, t: 1000 + o.square().mean(), [(torch.ones(3, 2), torch.zeros(3))])
    with pytest.raises(InputError, match=r"rise=1e-09 is below the rounding of the loss \(0\.0005 at L = 1000"):
        landscape.basin_radius(problem, rise=1e-9)
    assert landscape.basin_radius(problem, rise=0.1, directions=4).value > 0


class Walled(nn.Module):
    """L(w) = slope'w + curvature |w|^2, and `wall` where the last weight is beyond 1 on either side."""

    def __init__(self, w, slope, curvature, wall):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w, dtype=torch.float64))
        self.slope, self.curvature, self.wall = torch.tensor(slope, dtype=torch.float64), curvature, wall

    def forward(self, x):
        value = self.slope @ self.w + self.curvature * self.w.square().sum()
        return torch.where(self.w[-1].abs() < 1, value, self.wall).expand(x.shape[0])


def walled(*arguments):
    return landscape.Problem(Walled(*arguments), first_output, [(torch.zeros(4, 1), torch.zeros(4))])


@pytest.mark.parametrize("wall", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_lies_outside_in_the_worst_case_too(wall):
    found = landscape.basin_radius(walled([0.5], [0.0], 0.01, wall), tol=1e-6)
    assert set(np.round(found.radii, 5)) == {0.5, 1.5}
    assert found.value == pytest.approx(0.5, rel=1e-6)
    assert found.worst_case == pytest.approx(0.5, rel=1e-6)


def test_a_kink_without_a_gradient_is_no_wall():
    """L(w) = |w| as sqrt(w^2), whose gradient at 0 is nan: the radius is the rise."""
    model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    nn.init.zeros_(model.weight)
    problem = landscape.Problem(model, lambda o, t: o.square().sqrt().mean(), [(torch.ones(3, 1), torch.zeros(3))])
    found = landscape.basin_radius(problem, rise=0.1, tol=1e-6)
    assert (found.value, found.worst_case) == pytest.approx((0.1, 0.1), rel=1e-6)


def test_the_ascent_finds_a_wall_before_the_directions_do():
    """Slope along the last of 50 weights: the ascent meets the wall at 1, random directions far later."""
    problem = walled([0.0] * 50, [0.0] * 49 + [1e-3], 0.0, math.nan)
    found = landscape.basin_radius(problem, tol=1e-6)
    assert found.worst_case == pytest.approx(1.0, rel=1e-6)
    assert found.radii.min() > 2


def test_the_worst_case_is_at_most_that_of_the_directions():
    """The slope leads along the wall: no ascent meets what the directions do."""
    problem = walled([0.0, 0.0], [1e-3, 0.0], 0.0, math.nan)
    found = landscape.basin_radius(problem, steps=1)
    assert 0.95 < found.worst_case <= found.radii.min()


def test_wrong_arguments_are_refused():
    _, problem = trained(steps=0)
    for arguments, says in (
        ({"rise": 0.0}, "rise=0"),
        ({"share": 1.0}, "share=1"),
        ({"directions": 0}, "directions=0"),
        ({"tol": math.nan}, "tol=nan"),
    ):
        with pytest.raises(InputError, match=says):
            landscape.basin_radius(problem, **arguments)
