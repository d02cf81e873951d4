"""Is my picture right? Each check says so where it is, and why not where it is not."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from surface_cases import data, mlp
from torch import nn

import landscape
from landscape import InputError, NonDeterministicWarning, Problem
from landscape.surfaces.directions.directions import Directions, described, directions
from landscape.surfaces.grid.evaluation import Choice, GridEvaluation
from landscape.surfaces.picture_checks import chance_accuracy, check, plateau
from landscape.surfaces.shown_curvature import lowest_shown


def finding(surface, name):
    return next(c for c in surface.checks if c["name"] == name)


def trained():
    problem = mlp(dtype=torch.float64)
    w = problem.weights
    for _ in range(400):
        w = w - 0.5 * problem.gradient(w)
    problem.parameters.write(problem.model, w)
    return Problem(problem.model, nn.CrossEntropyLoss(), [(b.args[0], b.target) for b in problem.batches])


def test_too_small_and_too_large_ranges():
    problem = trained()
    good = landscape.surface(problem, radius=0.3, grid=7)
    assert finding(good, "range")["ok"]
    assert finding(good, "saturation")["ok"]
    tiny = landscape.surface(problem, radius=1e-15, grid=3)
    assert "no more than rounding" in finding(tiny, "range")["text"]
    huge = landscape.surface(problem, radius=300.0, grid=7)
    assert not finding(huge, "minimum")["ok"] or finding(huge, "range")["ok"]
    small = landscape.surface(problem, radius=1e-4, grid=3)
    text, value = finding(small, "range")["text"], finding(small, "range")["value"]
    assert ("within two standard errors of sampling" in text) == (value < 2)


def test_relief_is_compared_with_the_paired_sampling_error():
    problem = trained()
    surface = landscape.surface(problem, radius=0.3, grid=5)
    vectors = directions("gaussian", problem).vectors
    i, j = np.unravel_index(np.argmax(surface.loss), surface.loss.shape)
    highest = problem.weights + surface.x[i] * vectors[0] + surface.y[j] * vectors[1]
    error = float((problem.losses(highest) - problem.losses()).std()) / problem.examples**0.5
    relief = surface.loss.max() - surface.loss.min()
    assert finding(surface, "range")["value"] == pytest.approx(relief / error, rel=1e-9)


def test_center_that_is_not_the_minimum():
    problem = mlp(dtype=torch.float64)  # untrained: downhill is one direction away
    surface = landscape.surface(problem, "gradient", radius=0.2, grid=5)
    check = finding(surface, "minimum")
    assert not check["ok"]
    assert check["value"] == pytest.approx(surface.center_loss - surface.loss.min())
    assert check["text"] in surface.warnings
    assert check["text"] in surface.summary()["warnings"]
    bottom = landscape.surface(trained(), radius=0.3, grid=5)
    assert finding(bottom, "minimum")["ok"]


@pytest.mark.parametrize(
    ("make", "kind", "grid", "passes"),
    [
        (trained, "gaussian", 9, 4),  # finite at the center, the same again, the highest point against the center
        (trained, "gaussian", 11, 5),  # other batches leave the loss as it is
        (mlp, "gradient", 11, 6),  # the lowest point against the center
    ],
)
def test_passes_beside_those_over_the_points(make, kind, grid, passes):
    problem = make()
    plane = directions(kind, problem)
    with problem.counting() as cost:
        landscape.surface(problem, plane, radius=0.3, grid=grid)
    assert cost["forward"] == grid**2 + passes


def test_parallel_directions():
    problem = mlp(dtype=torch.float64)
    one, two = directions("gaussian", problem).vectors
    leaning = Directions("own", (one, two + one), problem.weights, "||w||")
    surface = landscape.surface(problem, described(leaning, problem.parameters), radius=0.1, grid=3)
    assert finding(surface, "cosine")["value"] == pytest.approx(0.5**0.5)
    assert not finding(surface, "cosine")["ok"]


def test_random_losses_and_training_mode():
    model = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.5), nn.Linear(16, 3))
    inputs, labels = data()
    with pytest.warns(NonDeterministicWarning):
        problem = Problem(model.train(), nn.CrossEntropyLoss(), [(inputs, labels)], evaluation_mode=False)
    surface = landscape.surface(problem, grid=3)
    assert sum(c["name"] == "determinism" and not c["ok"] for c in surface.checks) == 2
    assert not finding(surface, "mode")["ok"]


def test_plateau_and_chance():
    bowl = np.add.outer(np.linspace(-1, 1, 21) ** 2, np.linspace(-1, 1, 21) ** 2)
    assert plateau(bowl) < 0.2
    assert plateau(np.minimum(bowl, 0.1)) > 0.8
    inputs, _ = data(10)
    labels = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 2, 2])
    problem = Problem(nn.Linear(8, 3), nn.CrossEntropyLoss(), [(inputs[:7], labels[:7]), (inputs[7:], labels[7:])])
    assert chance_accuracy(problem) == pytest.approx(0.6)
    regression = Problem(nn.Linear(8, 1), nn.MSELoss(), [(inputs, inputs[:, :1])])
    assert chance_accuracy(regression) is None


# -- guessing -------------------------------------------------------------------------------------------------------


def separated(share, sharpness=40.0):
    """A line that tells two classes apart, of which one holds this share of 1,000 examples."""
    x = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    edge = float(x[:, 0].sort().values[int(share * 1000)])
    model = nn.Linear(2, 2).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-sharpness, 0.0], [sharpness, 0.0]]))
        model.bias.copy_(torch.tensor([40 * edge, -40 * edge]))
    return Problem(model, nn.CrossEntropyLoss(), [(x, (x[:, 0] > edge).long())])


@pytest.mark.parametrize("share", [0.5, 0.9, 0.955, 0.97, 0.99])
def test_a_network_that_is_right_everywhere_does_not_guess(share):
    surface = landscape.surface(separated(share), radius=0.002, grid=5)
    assert surface.accuracy.min() > share + 0.005
    assert finding(surface, "saturation")["ok"], finding(surface, "saturation")


@pytest.mark.parametrize("share", [0.6, 0.955])
def test_one_output_for_all_guesses(share):
    surface = landscape.surface(separated(share, sharpness=0.0), radius=0.002, grid=5)
    found = finding(surface, "saturation")
    assert not found["ok"]
    assert "100% of the points guess (accuracy <= " in found["text"]
    tested = float(found["text"].split("<= ")[1].split(")")[0])
    assert share < tested < 1
    assert surface.accuracy.max() <= tested


# -- hidden curvature -----------------------------------------------------------------------------------------------


class Saddle(nn.Module):
    """(3 u0^2 - 2 u1^2 + u2^2) / 2 around w = 1."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(3, dtype=torch.float64))

    def forward(self, x):
        u = self.w - 1
        return (0.5 * (3 * u[0] ** 2 - 2 * u[1] ** 2 + u[2] ** 2)).expand(len(x)) + 0 * x[:, 0]


def saddle():
    batch = (torch.zeros(4, 1, dtype=torch.float64), torch.zeros(4, dtype=torch.float64))
    return Problem(Saddle(), lambda outputs, _: outputs.mean(), [batch], check=False)


@pytest.mark.parametrize(
    ("vectors", "shown"),
    [
        ([[1, 0, 0], [0, 1, 0]], True),
        ([[1, 0, 0], [0, 0, 1]], False),
        ([[0.01, 0, 0], [0.01, 0.02, 0]], True),  # neither of unit length nor orthogonal
        ([[0, 1, 0]], True),
        ([[1, 0, 0]], False),
        ([[0, 1, 1]], False),  # -0.5 along it, less than half of -2
    ],
)
def test_a_picture_hides_what_none_of_its_directions_shows(vectors, shown):
    problem = saddle()
    plane = Directions("own", tuple(torch.tensor(v).double() for v in vectors), problem.weights, "")
    plane = described(plane, problem.parameters)
    surface = landscape.surface(problem, plane, grid=5, radius=0.5, curvature=True, dimensions=len(vectors))
    found = finding(surface, "curvature")
    assert found["ok"] == shown
    assert ("shows the negative curvature" in found["text"]) == shown
    assert ("hides" in found["text"]) != shown
    assert found["value"] == pytest.approx(2 / 3)


class Wells(nn.Module):
    """2 u0^2 - u1^2 + u1^4 around w = 1: along u1 the curvature is -2 at the center only."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(2, dtype=torch.float64))

    def forward(self, x):
        u = self.w - 1
        return (2 * u[0] ** 2 - u[1] ** 2 + u[1] ** 4).expand(len(x)) + 0 * x[:, 0]


@pytest.mark.parametrize("radius", [2.0, 0.2])
def test_an_axis_along_the_negative_eigenvector_does_not_hide_it_however_coarse(radius):
    batch = (torch.zeros(4, 1, dtype=torch.float64), torch.zeros(4, dtype=torch.float64))
    problem = Problem(Wells(), lambda outputs, _: outputs.mean(), [batch], check=False)
    line = Directions("own", (torch.tensor([0.0, 1.0]).double(),), problem.weights, "")
    line = described(line, problem.parameters)
    surface = landscape.surface(problem, line, grid=5, radius=radius, dimensions=1, curvature=True)
    found = finding(surface, "curvature")
    assert "hides" not in found["text"]
    assert found["ok"] == (radius < 1)
    assert ("too coarse" in found["text"]) == (radius > 1)


class Turning(nn.Module):
    """Beyond u0 = 0.5 the curvature along u2, none at the center, is -3: outside of the plane of u0 and u1."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(3, dtype=torch.float64))

    def forward(self, x):
        u = self.w - 1
        beyond = torch.relu(u[0].abs() - 0.5) ** 2
        return (3 * u[0] ** 2 - u[1] ** 2 - 20 * beyond * u[2] ** 2).expand(len(x)) + 0 * x[:, 0]


def test_what_lies_outside_of_the_picture_elsewhere_is_told_from_what_it_hides():
    batch = (torch.zeros(4, 1, dtype=torch.float64), torch.zeros(4, dtype=torch.float64))
    problem = Problem(Turning(), lambda outputs, _: outputs.mean(), [batch], check=False)
    plane = Directions("own", tuple(torch.eye(3).double()[:2]), problem.weights, "")
    surface = landscape.surface(problem, described(plane, problem.parameters), grid=5, radius=1.0, curvature=True)
    found = finding(surface, "curvature")
    assert not found["ok"]
    assert "shows the negative curvature at the center; at 40% of the points" in found["text"]
    assert "hides" not in found["text"]


def test_the_curvature_shown_is_that_of_a_quadratic():
    generator = np.random.default_rng(0)
    hessian = generator.normal(size=(4, 4))
    hessian += hessian.T
    vectors = generator.normal(size=(2, 4))
    x, y = np.array([-2.0, -1.0, 0.0, 0.5, 3.0]), np.linspace(-1, 1, 4)
    points = x[:, None, None] * vectors[0] + y[None, :, None] * vectors[1]
    loss = 0.5 * np.einsum("abi,ij,abj->ab", points, hessian, points)
    basis = np.linalg.qr(vectors.T)[0]
    expected = np.linalg.eigvalsh(basis.T @ hessian @ basis)[0]
    shown = lowest_shown(loss, (x, y), vectors @ vectors.T)
    # Exact in the inner points; np.gradient is of first order at the edges of unequal steps.
    np.testing.assert_allclose(shown[1:-1, 1:-1], expected, rtol=1e-8)
    assert np.isnan(lowest_shown(loss, (x, y), np.ones((2, 2)))).all()
    loss[2, 2] = np.inf
    assert np.isnan(lowest_shown(loss, (x, y), vectors @ vectors.T)[2, 2])


# -- what is tested is what is printed ------------------------------------------------------------------------------


class Slope(nn.Module):
    """w x, for (w x - y)^2 with noise in y."""

    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([w], dtype=torch.float64))

    def forward(self, x):
        return self.w * x


def sloped(offset):
    """A picture whose center lies beside the minimum by an offset in the only weight."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(400, 1, generator=generator, dtype=torch.float64)
    y = x + torch.randn(400, 1, generator=generator, dtype=torch.float64)
    best = float((x * y).sum() / (x * x).sum())
    problem = Problem(Slope(best + offset), nn.MSELoss(), [(x, y)])
    line = Directions("own", (torch.ones(1, dtype=torch.float64),), problem.weights, "")
    surface = landscape.surface(
        problem, described(line, problem.parameters), radius=abs(offset), grid=3, dimensions=1, batch_size=0
    )
    lower = torch.tensor([best], dtype=torch.float64)
    error = float((problem.losses(lower) - problem.losses()).std()) / 20
    return surface, float(problem.loss() - problem.loss(lower)), error


@pytest.mark.parametrize("offset", [0.02, 0.06, 0.08, 0.15, 0.3])
def test_the_tolerance_of_the_minimum_is_the_one_that_is_printed(offset):
    surface, below, error = sloped(offset)
    found = finding(surface, "minimum")
    assert found["value"] == pytest.approx(below)
    assert found["ok"] == (below < 2 * error)
    if found["ok"]:
        printed = float(found["text"].split("sampling, ")[1].split(",")[0])
        assert printed == pytest.approx(2 * error, rel=0.05)
        assert "not the minimum" not in found["text"]
    else:
        assert "the center is not the minimum" in found["text"]
        assert found["text"] in surface.warnings


def test_the_offsets_fall_on_both_sides():
    assert {finding(sloped(offset)[0], "minimum")["ok"] for offset in (0.02, 0.3)} == {True, False}


# -- nan ------------------------------------------------------------------------------------------------------------


def test_a_surface_around_a_loss_that_is_not_finite_is_refused(tmp_path):
    problem = mlp()
    problem.parameters.write(problem.model, problem.weights * 1e30)
    overflowing = Problem(problem.model, nn.CrossEntropyLoss(), [data()], check=False)
    with pytest.raises(InputError, match="^the loss at the weights themselves is not finite") as refused:
        landscape.surface(overflowing, grid=3, file=tmp_path / "surface.h5")
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_nan_is_neither_equal_to_nor_below_anything():
    problem = trained()
    surface = landscape.surface(problem, radius=0.3, grid=5)
    plane = directions("gaussian", problem)
    evaluation = GridEvaluation({"": problem}, plane.center, plane.vectors, Choice())
    loss = surface.loss.copy()
    loss[2, 2] = np.nan
    found = {c["name"]: c for c in check(replace(surface, loss=loss), problem, evaluation)}
    assert not found["determinism"]["ok"]
    assert not found["minimum"]["ok"]
    assert "not finite" in found["minimum"]["text"]


BAD_NEWS = (" not ", "choose", "hides", "changed", "guess", "distorted", "within its", "coarse", "outside")


class Offset(nn.Module):
    """u_0^2 / 2 - u_1^2 / 4 above a large number, and something else past u_0 = 0.3."""

    def __init__(self, offset, beyond=0.0, dtype=torch.float32):
        super().__init__()
        self.w, self.offset, self.beyond = nn.Parameter(torch.ones(2, dtype=dtype)), offset, beyond

    def forward(self, x):
        u = self.w - 1
        bowl = self.offset + u[0] ** 2 / 2 - (u[1] ** 2 / 4 if self.offset else 0.0)
        return torch.where(u[0] > 0.3, bowl + self.beyond, bowl).expand(len(x)) + 0 * x[:, 0]


@pytest.mark.parametrize(
    ("offset", "beyond", "ok", "text"),
    [
        (1e6, 0.0, True, "no point lies below the center by more than rounding, 2.4"),
        (0.0, -np.inf, False, "is lower by inf"),
        (0.0, np.nan, True, "the center is the lowest point of the picture, of those whose loss is a number"),
    ],
)
def test_the_center_is_called_the_lowest_point_only_where_it_is(offset, beyond, ok, text):
    batch = (torch.zeros(4, 1), torch.zeros(4))
    problem = Problem(Offset(offset, beyond), lambda o, t: o.mean(), [batch], check=False)
    plane = Directions("own", tuple(torch.eye(2)), problem.weights, "")
    surface = landscape.surface(problem, described(plane, problem.parameters), radius=1.0, grid=5)
    assert finding(surface, "minimum")["ok"] == ok
    assert finding(surface, "minimum")["text"].endswith(text)


def test_a_tick_never_stands_beside_bad_news():
    line = described(
        Directions("own", (torch.tensor([0.0, 1, 0]).double(),), saddle().weights, ""), saddle().parameters
    )
    surfaces = [
        *(landscape.surface(trained(), radius=r, grid=5) for r in (1e-4, 0.3, 30.0)),
        landscape.surface(mlp(dtype=torch.float64), "gradient", radius=0.2, grid=5),
        landscape.surface(saddle(), line, radius=0.5, grid=5, dimensions=1, curvature=True),
        *(sloped(offset)[0] for offset in (0.02, 0.3)),
    ]
    checks = [c for surface in surfaces for c in surface.checks]
    for one in checks:
        assert not (one["ok"] and any(word in one["text"] for word in BAD_NEWS)), one
    assert any(one["ok"] for one in checks)
    assert any(not one["ok"] for one in checks)
