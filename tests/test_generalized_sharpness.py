"""Generalized sharpness by brute force over signs, eigenvalues and matrices; batch sharpness by dense Hessians."""

import itertools

import numpy as np
import pytest
import torch
from curvature_cases import dense_hessian
from edge_cases import network, quadratic
from torch import nn
from torch.testing import assert_close

import landscape
from landscape.ball.norms import NormBall
from landscape.curvature.norm_maximum import ascend, best_of_signs
from landscape.errors import InputError
from landscape.progress import Bar


def by_signs(a):
    """Max over all 2^d vertices, one at a time."""
    return max(float(s @ a @ s) for s in map(torch.DoubleTensor, itertools.product((-1.0, 1.0), repeat=len(a))))


@pytest.mark.parametrize("seed", range(3))
def test_linf_is_the_maximum_over_all_signs(seed):
    _, problem, a, g = quadratic(seed)
    result = landscape.generalized_sharpness(problem)
    np.testing.assert_allclose(result.value, by_signs(a), rtol=1e-10)
    np.testing.assert_allclose(result.dual_norm, float(g.abs().sum()), rtol=1e-12)
    assert result.exact
    d = result.vectors[0]
    np.testing.assert_allclose(float(d @ a @ d), result.value, rtol=1e-10)
    assert float(d.abs().max()) <= 1
    assert_close(best_of_signs(a).abs(), torch.ones(8, dtype=torch.float64))


def test_in_an_indefinite_box_the_maximum_may_lie_inside_a_face():
    _, problem, a, _ = quadratic(4, size=8, indefinite=True)
    result = landscape.generalized_sharpness(problem)
    assert bool((a.diagonal() < 0).any())
    assert not result.exact
    assert result.value >= by_signs(a) - 1e-10
    grid = max(
        float(d @ a @ d) for d in map(torch.DoubleTensor, itertools.product((-1.0, -0.5, 0.0, 0.5, 1.0), repeat=8))
    )
    assert result.value >= grid - 1e-10


@pytest.mark.parametrize("indefinite", [False, True])
def test_searches_give_lower_bounds_that_their_restarts_show(indefinite):
    """Twenty weights: too many signs for the measure, few enough for the test."""
    _, problem, a, _ = quadratic(1, size=20, indefinite=indefinite)
    best = best_of_signs(a)
    most = float(best @ a @ best)
    few = landscape.generalized_sharpness(problem, restarts=2)
    many = landscape.generalized_sharpness(problem, restarts=40)
    assert not few.exact
    assert len(few.searches) == 2
    assert_close(many.searches[:2], few.searches)
    assert few.value == few.searches.max() <= many.value
    if not indefinite:
        assert (many.searches <= most * (1 + 1e-12)).all()
        assert many.value >= 0.98 * most
        assert many.restart_spread > 0, "a case in which the searches end in different maxima"
        assert many.summary()["restart_spread"] == many.restart_spread
    else:
        assert many.value >= 0.98 * most


def test_a_search_never_falls_and_ends_where_no_vertex_is_better_to_first_order():
    _, _, a, _ = quadratic(1, size=20)
    ball = NormBall("linf", None)
    with Bar("", None) as bar:
        values = [ascend(lambda v: a @ v, ball, a[0].sign(), n, 1e-12, bar).value for n in range(1, 12)]
        end = ascend(lambda v: a @ v, ball, a[0].sign(), 100, 1e-12, bar)
    assert all(y >= x for x, y in itertools.pairwise(values))
    assert_close(end.point, (a @ end.point).sign())
    assert end.gap <= 1e-12


def test_l2_is_the_largest_eigenvalue_or_zero():
    _, problem, a, g = quadratic(2)
    result = landscape.generalized_sharpness(problem, norm="l2", tol=1e-9)
    np.testing.assert_allclose(result.value, torch.linalg.eigvalsh(a)[-1], rtol=1e-8)
    np.testing.assert_allclose(result.dual_norm, float(g.norm()), rtol=1e-12)
    assert result.searches is None
    assert result.error_bound <= 1e-8 * result.value
    model, _, _, _ = quadratic(2)
    model.a.copy_(-a)
    hill = landscape.Problem(model, lambda outputs, targets: outputs, [(torch.zeros(3, 1), torch.zeros(3))])
    assert landscape.generalized_sharpness(hill, norm="l2").value == 0


def tilted(diagonal, slope, at):
    """L(w) = 1/2 sum of h w^2 + slope'w over one vector, which is its own output."""
    h, b = (torch.tensor(x, dtype=torch.float64) for x in (diagonal, slope))
    model = nn.Module()
    model.w = nn.Parameter(torch.tensor(at, dtype=torch.float64))
    model.forward = lambda x: (0.5 * (h * model.w.square()).sum() + b @ model.w) * x.new_ones(len(x))
    return landscape.Problem(model, lambda outputs, targets: outputs, [(torch.zeros(3, 1), torch.zeros(3))])


def test_a_value_of_zero_is_no_end_of_a_search_unless_the_hessian_is_zero():
    """w1^2 - w2^2 does not bend along (1, 1); from (0, 1) the search ends at d = 0; w2^2 has (1, 0) in its kernel."""
    saddle = tilted([1.0, -1.0], [0.0, 2.0], [1.0, 1.0])
    one = landscape.generalized_sharpness(saddle, norm="spectral", restarts=1, steps=1)
    assert (one.value, one.converged) == (0.0, False)
    np.testing.assert_array_equal(one.gaps, [1.0])
    for restarts in (1, 4):
        found = landscape.generalized_sharpness(saddle, norm="spectral", restarts=restarts)
        np.testing.assert_allclose(found.value, 1.0, rtol=1e-3)
        assert found.converged
    for stuck in (tilted([1.0, -1.0], [0.0, 2.0], [0.0, 0.0]), tilted([0.0, 2.0], [1.0, 0.0], [0.0, 0.0])):
        result = landscape.generalized_sharpness(stuck, norm="spectral", restarts=1)
        assert (result.value, result.converged) == (0.0, False)
        assert result.hvps == result.cost["hvp"]
        assert landscape.generalized_sharpness(stuck, norm="spectral").value > 0.9
    for norm in ("linf", "spectral"):
        flat = landscape.generalized_sharpness(tilted([0.0, 0.0], [1.0, 2.0], [0.0, 0.0]), norm=norm)
        assert (flat.value, flat.converged, flat.hvps) == (0.0, True, flat.cost["hvp"])
        np.testing.assert_array_equal(flat.gaps, np.zeros(len(flat.gaps)))


def test_spectral_against_a_dense_search_over_orthogonal_matrices():
    """A 2 x 2 matrix and two biases: the extreme points are rotations, reflections and a circle; scanned densely."""
    _, problem, a, g = quadratic(6, size=6)
    result = landscape.generalized_sharpness(problem, norm="spectral", restarts=12, steps=200, tol=1e-10)
    angles = torch.linspace(0, 2 * np.pi, 361, dtype=torch.float64)[:-1]
    c, s = angles.cos(), angles.sin()
    matrices = torch.cat([torch.stack([c, -s, s, c], 1), torch.stack([c, s, s, -c], 1)])
    circle = torch.stack([c, s], 1)
    aa, ab, bb = a[:4, :4], a[:4, 4:], a[4:, 4:]
    values = ((matrices @ aa) * matrices).sum(1)[:, None] + 2 * matrices @ ab @ circle.T
    values = values + ((circle @ bb) * circle).sum(1)
    most = float(values.max())
    assert result.value >= most
    np.testing.assert_allclose(result.value, most, rtol=1e-3)  # steps of one degree
    d = result.vectors[0]
    assert float(torch.linalg.matrix_norm(d[:4].reshape(2, 2), 2)) <= 1 + 1e-12
    assert float(d[4:].norm()) <= 1 + 1e-12
    np.testing.assert_allclose(
        result.dual_norm, float(torch.linalg.matrix_norm(g[:4].reshape(2, 2), "nuc") + g[4:].norm()), rtol=1e-12
    )
    box = landscape.generalized_sharpness(problem, norm="spectral", vector_norm="linf", restarts=12, steps=200)
    corners = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    values = ((matrices @ aa) * matrices).sum(1)[:, None] + 2 * matrices @ ab @ corners.T
    most = float((values + ((corners @ bb) * corners).sum(1)).max())
    np.testing.assert_allclose(box.value, most, rtol=1e-3)


@pytest.mark.parametrize(("kind", "vectors"), [("l2", "l2"), ("linf", "l2"), ("spectral", "l2"), ("spectral", "linf")])
def test_the_furthest_point_attains_the_dual_norm_and_no_other_point_of_the_ball_exceeds_it(kind, vectors):
    model, batches = network()
    problem = landscape.Problem(model, nn.functional.cross_entropy, batches)
    ball, h = NormBall(kind, problem.parameters, vectors), problem.gradient()
    d, dual = ball.furthest_and_dual(h)
    assert_close(d @ h, dual)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        other = ball.furthest(torch.randn(len(h), generator=generator, dtype=torch.float64))
        assert float(other @ h) <= float(dual)
    assert_close(ball.furthest(d), d, rtol=1e-9, atol=1e-9)
    assert not ball.furthest(torch.zeros_like(h)).any()
    assert_close(ball.furthest_and_dual(3 * h)[1], 3 * dual)


def test_steepest_descent_in_a_norm_is_unstable_beyond_its_edge():
    """w - eta ||g||_1 sign(g) on a quadratic: below 2 / S the loss falls at every step, from many starts."""
    _, problem, a, _ = quadratic(0)
    edge = 2 / landscape.generalized_sharpness(problem).value
    generator = torch.Generator().manual_seed(1)
    worst = []
    for factor in (0.99, 1.3):
        rises = []
        for _ in range(300):
            w = torch.randn(8, generator=generator, dtype=torch.float64)
            g = a @ w
            after = w - factor * edge * g.abs().sum() * g.sign()
            rises.append(float(after @ a @ after - w @ a @ w))
        worst.append(max(rises))
    assert worst[0] < 0 < worst[1]


def test_it_goes_on_from_a_neighbor():
    _, problem, _, _ = quadratic(1, size=20)
    first = landscape.generalized_sharpness(problem, restarts=8)
    again = landscape.generalized_sharpness(problem, first.neighboring_start, restarts=1)
    assert again.value == first.value
    assert len(again.searches) == 2
    assert again.hvps < first.hvps


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "l1"}, "unknown norm 'l1'"),
        ({"norm": "spectral", "vector_norm": "l3"}, "unknown norm of vectors 'l3'"),
        ({"restarts": 0}, "restarts=0: a whole number of at least 1"),
        ({"steps": 0}, "steps=0"),
    ],
)
def test_options_out_of_range_are_told(options, message):
    with pytest.raises(InputError, match=message):
        landscape.generalized_sharpness(quadratic(size=20)[1], **options)


# -- batch sharpness ---------------------------------------------------------------------------------------------------


def dense_batches(problem, batches):
    values, squares = [], []
    for batch in batches:
        one = landscape.Problem(problem.model, nn.functional.cross_entropy, [batch])
        g, h = one.gradient(), dense_hessian(one)
        values.append(float(g @ h @ g / (g @ g)))
        squares.append(float(g @ g))
    return np.array(values), np.array(squares)


@pytest.mark.parametrize("size", [4, 7, 24])
def test_batch_sharpness_by_dense_hessians_of_the_batches(size):
    model, batches = network()
    problem = landscape.Problem(model, nn.functional.cross_entropy, batches)
    x, y = (torch.cat(part) for part in zip(*batches, strict=True))
    expected, squares = dense_batches(problem, list(zip(x.split(size), y.split(size), strict=True)))
    result = landscape.batch_sharpness(problem, batch_size=size)
    assert_close(torch.tensor(result.batches), torch.tensor(expected), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(result.value, expected.mean(), rtol=1e-9)
    np.testing.assert_allclose(result.gradient_norms, np.sqrt(squares), rtol=1e-9)
    np.testing.assert_allclose(result.ratio_of_means, (expected * squares).sum() / squares.sum(), rtol=1e-9)
    if size < 24:
        np.testing.assert_allclose(result.stderr, expected.std(ddof=1) / np.sqrt(len(expected)), rtol=1e-9)
    else:
        assert result.stderr is None
        np.testing.assert_allclose(result.value, landscape.directional_sharpness(problem).value, rtol=1e-9)
    assert (result.batch_size, result.stationary) == (size, 0)
    assert result.cost["hvp"] == 1


def test_shuffled_batches_are_another_partition_by_the_seed():
    model, batches = network()
    problem = landscape.Problem(model, nn.functional.cross_entropy, batches)
    values = [landscape.batch_sharpness(problem, batch_size=4, shuffle=True, seed=s).value for s in (0, 0, 1)]
    assert values[0] == values[1] != values[2]
    whole = landscape.batch_sharpness(problem, batch_size=24, shuffle=True).value
    np.testing.assert_allclose(whole, landscape.batch_sharpness(problem, batch_size=24).value, rtol=1e-9)


def test_the_default_is_32_all_or_the_batches_as_they_are():
    model, batches = network()
    problem = landscape.Problem(model, nn.functional.cross_entropy, batches)
    assert landscape.batch_sharpness(problem).batch_size == 24
    own = landscape.Problem(
        model, objective=lambda m, batch: nn.functional.cross_entropy(m(batch[0]), batch[1]), batches=batches
    )
    result = landscape.batch_sharpness(own)
    expected, _ = dense_batches(problem, batches)
    np.testing.assert_allclose(result.batches, expected, rtol=1e-9)
    assert result.batch_size == 0
    for options in ({"batch_size": 4}, {"shuffle": True}):
        with pytest.raises(InputError, match=r"these batches cannot be regrouped \(.*\): leave batch_size and shuffle"):
            landscape.batch_sharpness(own, **options)


def test_batches_without_a_gradient_are_left_out_and_counted():
    line = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    nn.init.ones_(line.weight)
    x = torch.tensor([[1.0], [2.0], [1.0]], dtype=torch.float64)
    y = torch.tensor([[2.0], [2.0], [0.0]], dtype=torch.float64)  # the second is fitted
    problem = landscape.Problem(line, nn.MSELoss(), [(x, y)])
    result = landscape.batch_sharpness(problem, batch_size=1)
    assert result.stationary == 1
    assert np.isnan(result.batches[1])
    np.testing.assert_allclose(result.value, 2.0)
    fitted = landscape.Problem(line, nn.MSELoss(), [(x, x)])
    with pytest.raises(InputError, match="the gradient of every batch is zero"):
        landscape.batch_sharpness(fitted, batch_size=1)


@pytest.mark.parametrize(
    ("size", "message"),
    [(0, "batch_size=0: a whole number"), (2.5, "batch_size=2.5: a whole"), (25, "there are only 24 examples")],
)
def test_a_batch_size_out_of_range_is_told(size, message):
    model, batches = network()
    problem = landscape.Problem(model, nn.functional.cross_entropy, batches)
    with pytest.raises(InputError, match=message):
        landscape.batch_sharpness(problem, batch_size=size)
