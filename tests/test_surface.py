"""Surfaces: every value, axis and orientation against closed forms; the model untouched; policies; bad input."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

import landscape
from landscape import InputError, Problem
from landscape.surfaces.directions.directions import Directions, described, directions
from landscape.surfaces.grid.axes import axis
from landscape.surfaces.grid.evaluation import Choice, GridEvaluation

torch.manual_seed(0)


class Quadratic(nn.Module):
    """L(w) = (w - c)^T A (w - c) / 2 + slope^T (w - c): nothing about it is symmetric."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(5, generator=generator, dtype=torch.float64))
        half = torch.randn(5, 5, generator=generator, dtype=torch.float64)
        self.register_buffer("matrix", half @ half.T)
        self.register_buffer("slope", torch.randn(5, generator=generator, dtype=torch.float64))
        self.register_buffer("center", self.weight.detach().clone())

    def forward(self, x):
        shift = self.weight - self.center
        return (shift @ self.matrix @ shift / 2 + self.slope @ shift) * x

    def at(self, *steps):
        shift = sum(steps)
        return float(shift @ self.matrix @ shift / 2 + self.slope @ shift)


def first_output(outputs, targets):
    return outputs


def quadratic():
    model = Quadratic()
    return model, Problem(model, first_output, [(torch.ones(4).double(), torch.zeros(4))])


def network(seed=0, *, norm=False, dtype=torch.float64):
    torch.manual_seed(seed)
    layers = [nn.Conv2d(1, 4, 3, padding=1), *([nn.BatchNorm2d(4)] if norm else []), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * 36, 12), nn.ReLU(), nn.Linear(12, 3)).to(dtype)
    images, labels = torch.randn(40, 1, 6, 6, dtype=dtype), torch.randint(0, 3, (40,))
    if norm:
        model(images)
    return model.eval(), images, labels


def problem_of(model, images, labels, **options):
    batches = [(images[i : i + 16], labels[i : i + 16]) for i in range(0, len(images), 16)]
    return Problem(model, nn.CrossEntropyLoss(), batches, **options)


# -- values, axes, orientation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grid", "ranges", "center"),
    [
        ((5, 5), [(-0.5, 0.5), (-0.5, 0.5)], True),
        ((3, 7), [(-0.5, 0.5), (-2.0, 2.0)], True),
        ((4, 6), [(0.0, 1.0), (-1.5, 0.0)], True),
        ((6, 5), [(-0.2, 1.3), (-0.7, 0.3)], True),
        ((4, 6), [(-0.5, 0.5), (-1.0, 1.0)], False),
        ((2, 2), [(0.5, 1.0), (1.0, 3.0)], False),
    ],
)
def test_bowl_is_exact_at_every_point(grid, ranges, center):
    model, problem = quadratic()
    result = landscape.surface(problem, "gaussian", ranges=ranges, grid=grid, center=center)
    first, second = directions("gaussian", problem).vectors
    assert result.loss.shape == grid == tuple(len(a) for a in result.axes)
    for axis_values, (low, high) in zip(result.axes, ranges, strict=True):
        assert axis_values[0] == low
        assert axis_values[-1] == high
        assert not center or 0.0 in axis_values
    for (i, a), (j, b) in itertools.product(enumerate(result.x), enumerate(result.y)):
        assert result.loss[i, j] == pytest.approx(model.at(float(a) * first, float(b) * second), rel=1e-12, abs=1e-13)
    # A transposed or sheared surface is another one: this bowl tells the axes and the signs apart.
    if grid[0] == grid[1]:
        assert np.abs(result.loss - result.loss.T).max() > 0.1
    assert np.abs(result.loss - result.loss[::-1]).max() > 0.1


def test_line_is_exact():
    model, problem = quadratic()
    result = landscape.surface(problem, "gaussian", radius=0.3, grid=9, dimensions=1)
    (direction,) = directions("gaussian", problem, count=1).vectors
    expected = [model.at(float(a) * direction) for a in result.x]
    np.testing.assert_allclose(result.loss, expected, rtol=1e-12, atol=1e-13)
    assert result.axes == (result.x,)
    assert result.center == (4,)
    assert result.center_loss == 0.0


def test_axes_count_multiples_of_the_weight_norm():
    _, problem = quadratic()
    result = landscape.surface(problem, grid=3)
    assert result.axes[0].tolist() == result.axes[1].tolist() == [-0.07, 0.0, 0.07]
    assert result.unit == "||w||"
    found = directions("gaussian", problem)
    for vector in found.vectors:
        assert float(vector.norm() / problem.weights.norm()) == pytest.approx(1, rel=1e-12)
    assert abs(found.facts["cosine"]) < 1e-12


def test_surface_equals_problem_evaluations():
    model, images, labels = network(norm=True)
    problem = problem_of(model, images, labels)
    test = problem_of(model, images[:7] + 1, labels[:7])
    result = landscape.surface(problem, radius=0.5, grid=(3, 5), others={"test": test})
    first, second = directions("gaussian", problem).vectors
    for (i, a), (j, b) in itertools.product(enumerate(result.x), enumerate(result.y)):
        w = problem.weights + float(a) * first + float(b) * second
        for here, loss, accuracy in (
            (problem, result.loss, result.accuracy),
            (test, result.other_loss[0], result.other_accuracy[0]),
        ):
            expected = here.evaluate(w)
            assert loss[i, j] == pytest.approx(float(expected.loss), rel=1e-12)
            assert accuracy[i, j] == float(expected.accuracy)
    assert result.others == ["test"]
    assert result.done.all()


@pytest.mark.parametrize("policy", ["frozen", "batch", "recalibrate"])
def test_batch_norm_policies(policy):
    model, images, labels = network(norm=True)
    problem = problem_of(model, images, labels, batch_norm=policy)
    result = landscape.surface(problem, radius=0.5, grid=3)
    first, second = directions("gaussian", problem).vectors
    for (i, a), (j, b) in itertools.product(enumerate(result.x), enumerate(result.y)):
        expected = problem.loss(problem.weights + float(a) * first + float(b) * second)
        assert result.loss[i, j] == pytest.approx(float(expected), rel=1e-12)
    assert result.provenance["batch_norm"] == policy


def test_many_points_a_launch_and_channels_last_agree_with_single_points():
    model, images, labels = network()
    problem = problem_of(model, images, labels)
    found = directions("gaussian", problem)
    points = [(a, b) for a in (-0.3, 0.0, 0.2) for b in (-0.1, 0.4)]
    values = []
    for choice in (
        Choice(),
        Choice(points_per_launch=4),
        Choice(channels_last=True),
        Choice(batch_size=40),
        Choice(batch_size=7, channels_last=True, points_per_launch=5),
    ):
        evaluation = GridEvaluation({"": problem}, found.center, found.vectors, choice)
        with problem.counting() as cost, evaluation.opened():
            values.append(evaluation(points).cpu())
        tiles = -(-len(points) // choice.points_per_launch)
        assert cost["forward"] == tiles * choice.points_per_launch
        torch.testing.assert_close(
            evaluation.at((0.2, 0.4)), found.center + 0.2 * found.vectors[0] + 0.4 * found.vectors[1]
        )
    for other in values[1:]:
        torch.testing.assert_close(other, values[0], rtol=1e-12, atol=1e-12)


def test_model_is_left_as_it_was_also_after_an_exception():
    model, images, labels = network(norm=True)
    model.train()
    model[0].weight.requires_grad_(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    identities = [id(p) for p in model.parameters()]
    flags = [(m.training) for m in model.modules()], [p.requires_grad for p in model.parameters()]
    calls = -math.inf

    def loss(outputs, targets):
        nonlocal calls
        calls += 1
        if calls == 12:
            raise RuntimeError("midway")
        return nn.functional.cross_entropy(outputs, targets)

    problem = Problem(model, loss, [(images, labels)])
    assert problem.undividable is None
    calls = 0
    with pytest.raises(InputError, match="RuntimeError: midway"):
        landscape.surface(problem, grid=5)
    landscape.surface(problem, grid=3)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert identities == [id(p) for p in model.parameters()]
    assert flags == ([m.training for m in model.modules()], [p.requires_grad for p in model.parameters()])


def test_not_finite_values_are_kept_and_done():
    model = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        model.weight.fill_(1.0)
    problem = Problem(model, lambda o, t: torch.log(o[:, 0]), [(torch.ones(2, 1), torch.zeros(2))])
    found = described(
        Directions("own", (torch.ones(1, dtype=torch.float64),), problem.weights, "||w||"), problem.parameters
    )
    result = landscape.surface(problem, found, ranges=[(-2.0, 0.0)], grid=3)
    assert np.isnan(result.loss[0])
    assert result.loss[1] == -np.inf
    assert result.loss[2] == 0
    assert result.done.all()
    assert result.summary()["max_loss"] == 0


def test_saved_and_loaded(tmp_path):
    _, problem = quadratic()
    for dimensions in (1, 2):
        result = landscape.surface(problem, grid=3, dimensions=dimensions)
        result.save(tmp_path / f"{dimensions}.h5")
        again = landscape.load(tmp_path / f"{dimensions}.h5")
        np.testing.assert_array_equal(again.loss, result.loss)
        assert again.summary() == result.summary()
        assert len(again.axes) == dimensions
    assert set(result.summary()) >= {"axes", "center_loss", "max_loss", "radius", "directions"}


def test_same_seed_same_surface_other_seed_another():
    model, images, labels = network()
    problem = problem_of(model, images, labels)
    one, two, three = (landscape.surface(problem, grid=3, seed=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(one.loss, two.loss)
    assert np.abs(one.loss - three.loss).max() > 1e-6


# -- axes ------------------------------------------------------------------------------------------------------------


def test_log_axis_is_geometric_on_either_side():
    values = axis(9, (-2.0, 2.0), spacing="log", decades=3)
    np.testing.assert_allclose(values[5:], 2 * 10.0 ** np.array([-3, -2, -1, 0]))
    np.testing.assert_allclose(values, -values[::-1], atol=0)
    assert values[4] == 0


@pytest.mark.parametrize(
    ("points", "span", "options", "message"),
    [
        (0, (-1, 1), {}, "at least 2 points, received 0"),
        (-3, (-1, 1), {}, "received -3"),
        (4, (-1, 1), {}, "even grid \\(4\\).*use 5, or pass center=False"),
        (5, (1, -1), {}, "smaller to a larger"),
        (5, (0.5, 1), {}, "leaves out 0"),
        (2, (-1, 2), {}, "at least 3 points"),
        (5, (-1, float("nan")), {}, "smaller to a larger"),
        (5, (-1, 1), {"spacing": "cubic"}, "linear, log"),
    ],
)
def test_wrong_axes_are_refused(points, span, options, message):
    with pytest.raises(InputError, match=message):
        axis(points, span, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"radius": 0}, "radius must be a positive number, received 0"),
        ({"radius": -0.1}, "positive"),
        ({"radius": float("nan")}, "positive"),
        ({"directions": "filtr"}, "did you mean 'filter'"),
        ({"dimensions": 3}, "1 or 2 dimensions, received 3"),
        ({"grid": (3, 3, 3)}, "3 numbers for 2 directions"),
        ({"ranges": [(-1, 1)]}, "1 ranges for 2 directions"),
        ({"radius": 1, "ranges": [(-1, 1), (-1, 1)]}, "both given"),
    ],
)
def test_wrong_arguments_are_refused(options, message):
    _, problem = quadratic()
    with pytest.raises(InputError, match=message):
        landscape.surface(problem, **{"grid": 3, **options})


def test_other_dataset_of_another_model_is_refused():
    _, problem = quadratic()
    with pytest.raises(InputError, match="'test' belongs to another model"):
        landscape.surface(problem, grid=3, others={"test": quadratic()[1]})
