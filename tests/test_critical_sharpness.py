"""Critical, relative and directional sharpness against closed forms, and the search along one line."""

import copy
import math

import numpy as np
import pytest
import torch
from curvature_cases import dense_hessian
from edge_cases import OPTIMIZERS, network, quadratic, trained
from torch import nn
from torch.testing import assert_close

import landscape
from landscape.curvature.frozen_step import frozen_step
from landscape.errors import InputError
from landscape.sharpness.crossing import first_crossing


def line_search(f, slope, *, rounding=1e-14, guess=None, bound=1e6, tol=0.05):
    """The crossing of a function of one step."""
    return first_crossing(f, f(0.0), slope, rounding=rounding, guess=guess, bound=bound, tol=tol)


def along(line):
    """A Problem of one weight, L = line(w), at w = 0 with slope -1 in w: d = g = -1, so that eta is w."""
    model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    nn.init.zeros_(model.weight)
    return landscape.Problem(
        model, lambda o, t: line(o.reshape(-1)), [(torch.ones(1, 1, dtype=torch.float64), torch.zeros(1))]
    )


# -- closed forms ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_on_a_quadratic_critical_and_directional_sharpness_are_the_closed_form(seed):
    _, problem, a, g = quadratic(seed)
    generator = torch.Generator().manual_seed(seed)
    for d in (g, g + 0.3 * torch.randn(8, generator=generator, dtype=torch.float64)):
        closed = float(d @ a @ d / (d @ g))
        result = landscape.critical_sharpness(problem, direction=d)
        np.testing.assert_allclose(result.value, closed, rtol=1e-8)
        np.testing.assert_allclose(result.step, 2 / closed, rtol=1e-8)
        assert result.below <= result.step <= result.above
        assert (result.above - result.below) / result.above <= 0.05
        directional = landscape.directional_sharpness(problem, direction=d)
        np.testing.assert_allclose(directional.value, closed, rtol=1e-12)
        np.testing.assert_allclose(directional.curvature, float(d @ a @ d / (d @ d)), rtol=1e-12)
    top = float(torch.linalg.eigvalsh(a)[-1])
    assert landscape.critical_sharpness(problem).value <= top
    np.testing.assert_allclose(
        landscape.critical_sharpness(problem).value, landscape.directional_sharpness(problem).value, rtol=1e-8
    )


def test_it_is_at_most_lambda_max_of_the_preconditioned_hessian_along_a_preconditioned_gradient():
    model, problem, a, g = quadratic(2)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=0.1)
    for p, scale in zip(model.parameters(), (0.3, 0.02), strict=True):
        optimizer.state[p] = {"step": torch.tensor(4.0), "square_avg": scale * torch.rand_like(p)}
    inverse = frozen_step(problem, optimizer).inverse
    top = float(torch.linalg.eigvals(torch.diag(inverse) @ a).real.max())
    np.testing.assert_allclose(landscape.preconditioned_sharpness(problem, optimizer, tol=1e-9).value, top, rtol=1e-8)
    d = inverse * g
    closed = float(d @ a @ d / (d @ g))
    np.testing.assert_allclose(landscape.critical_sharpness(problem, direction=d).value, closed, rtol=1e-8)
    assert closed <= top
    assert closed > float(torch.linalg.eigvalsh(a)[-1]), "the bound by lambda_max of H itself does not hold here"


def test_directional_sharpness_of_a_network_by_its_dense_hessian():
    model, batches = network()
    problem = landscape.Problem(model, nn.functional.cross_entropy, batches)
    h, g = dense_hessian(problem).detach(), problem.gradient()
    optimizer = trained(model, batches, OPTIMIZERS["sgd"], steps=0)
    for direction in ("gradient", optimizer):
        assert_close(landscape.directional_sharpness(problem, direction=direction).value, float(g @ h @ g / (g @ g)))


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_the_step_of_an_optimizer_is_a_learning_rate(name):
    """Trained with a rate below eta_c, the loss falls; above it, it rises: by the optimizer's own step."""
    model, batches = network()
    optimizer = trained(model, batches, OPTIMIZERS[name])
    problem = landscape.Problem(model, nn.functional.cross_entropy, batches)
    result = landscape.critical_sharpness(problem, direction=optimizer)
    x, y = (torch.cat(part) for part in zip(*batches, strict=True))
    rises = []
    for rate in (result.below, result.above):
        copied, model_copy = _deep(optimizer, model)
        for group in copied.param_groups:
            group["lr"] = rate
        nn.functional.cross_entropy(model_copy(x), y).backward()
        copied.step()
        rises.append(float(nn.functional.cross_entropy(model_copy(x), y).detach()) - float(problem.loss()))
    assert rises[0] <= 0 < rises[1]


def _deep(optimizer, model):
    return copy.deepcopy((optimizer, model))


def test_relative_critical_sharpness_is_that_of_one_loss_along_the_other():
    model, problem, a, g = quadratic(1)
    _, batches = None, [(torch.zeros(3, 1), torch.zeros(3))]
    target = torch.linspace(-1, 1, 8, dtype=torch.float64)
    other = landscape.Problem(
        model, objective=lambda m, batch: torch.cat([p.reshape(-1) for p in m.parameters()]) @ target, batches=batches
    )
    theirs = target if float(target @ g) > 0 else -target
    if float(target @ g) <= 0:
        target.neg_()
    result = landscape.relative_critical_sharpness(problem, other)
    np.testing.assert_allclose(result.value, float(theirs @ a @ theirs / (theirs @ g)), rtol=1e-8)
    np.testing.assert_allclose(result.slope, float(theirs @ g), rtol=1e-12)
    assert result.provenance["other_loss"] == other.loss_name
    same = landscape.relative_critical_sharpness(problem, problem)
    assert same.value == landscape.critical_sharpness(problem).value
    target.neg_()
    with pytest.raises(InputError, match=r"d'g = -.* has to lower the loss of `problem` at first"):
        landscape.relative_critical_sharpness(problem, other)


def test_the_other_loss_is_one_of_the_same_parameters():
    _, problem, _, _ = quadratic()
    model, batches = network()
    other = landscape.Problem(model, nn.functional.cross_entropy, batches)
    with pytest.raises(InputError, match="other is a loss of other parameters"):
        landscape.relative_critical_sharpness(problem, other)
    with pytest.raises(InputError, match="other is missing: the Problem of the other data is needed"):
        landscape.relative_critical_sharpness(problem)
    with pytest.raises(InputError, match="other is of type list: the Problem of the other data is needed"):
        landscape.relative_critical_sharpness(problem, batches)


def test_the_other_loss_is_one_of_the_same_network_in_the_same_dtype():
    model, batches = network()
    problem = landscape.Problem(model, nn.functional.cross_entropy, batches)
    twin = landscape.Problem(copy.deepcopy(model), nn.functional.cross_entropy, batches)
    with pytest.raises(InputError, match="other is a loss of another network"):
        landscape.relative_critical_sharpness(problem, twin)
    single = [(x.float(), y) for x, y in batches]
    moved = landscape.Problem(model.float(), nn.functional.cross_entropy, single)
    with pytest.raises(InputError, match=r"other is a loss in torch.float32 on cpu, not in torch.float64 on cpu"):
        landscape.relative_critical_sharpness(problem, moved)


def test_an_optimizers_relative_direction_uses_the_other_gradient():
    model, batches = network()
    optimizer = trained(model, batches, OPTIMIZERS["adam"])
    one, other = (landscape.Problem(model, nn.functional.cross_entropy, [b]) for b in batches[:2])
    by_optimizer = landscape.relative_critical_sharpness(one, other, direction=optimizer)
    by_hand = landscape.critical_sharpness(
        one, direction=landscape.sharpness.updates.optimizer_direction(one, optimizer, other.gradient())
    )
    assert by_optimizer.value == by_hand.value


# -- the search --------------------------------------------------------------------------------------------------------


def test_a_warm_search_takes_5_to_7_forward_passes_and_they_are_counted():
    model, batches = network()
    problem = landscape.Problem(model, nn.functional.cross_entropy, batches)
    cold = landscape.critical_sharpness(problem)
    for factor in (0.5, 0.6, 0.75, 1.0, 1.5, 1.99):
        warm = landscape.critical_sharpness(problem, factor * cold.step)
        assert 4 <= warm.forwards <= 7
        assert warm.cost["forward"] == warm.forwards
        assert warm.cost["backward"] == 1
        np.testing.assert_allclose(warm.value, cold.value, rtol=5e-3)
    assert cold.forwards == cold.cost["forward"] <= 18


def test_the_first_of_several_crossings_is_taken():
    """Above zero in (1, 3) and from 10 on: a search that starts at 5 finds the second."""

    def f(t):
        return -t * (1 - t) * (3 - t) * (10 - t) / 30

    cold = line_search(lambda t: 5 + f(t), 1.0)
    np.testing.assert_allclose(cold.step, 1.0, rtol=0.03)
    assert cold.below < 1 <= cold.above
    for power in range(int(math.log2(cold.below / cold.first)) + 1):
        assert f(cold.first * 2**power) <= 0
    warm = line_search(lambda t: 5 + f(t), 1.0, guess=1.3)
    np.testing.assert_allclose(warm.step, 1.0, rtol=0.03)


@pytest.mark.parametrize("worst", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_counts_as_above(worst):
    result = line_search(lambda t: 1 - t if t < 0.3 else worst, 1.0)
    assert result.below < 0.3 <= result.above
    assert (result.above - result.below) / result.above <= 0.05
    assert result.below <= result.step <= result.above
    through = landscape.critical_sharpness(along(lambda o: torch.where(o < 0.3, 1 - o, worst * torch.ones_like(o))))
    assert through.below < 0.3 <= through.above
    assert through.crossed


def test_no_crossing_up_to_the_bound_is_said():
    problem = along(lambda o: 1 - o)
    result = landscape.critical_sharpness(problem, bound=100)
    assert (result.crossed, result.value, result.step, result.above) == (False, 0.0, math.inf, math.inf)
    assert 50 <= result.below <= 100
    assert result.neighboring_start is None
    assert result.summary()["step"] is None
    says = landscape.MEASURES["critical_sharpness"].says
    assert says(result.summary(), 1.0).startswith("No step up to ")
    assert says(landscape.critical_sharpness(quadratic()[1]).summary(), 1.0).startswith(
        "The first step along the update that raises"
    )


def test_a_guess_that_is_far_off_costs_more_and_changes_little():
    for guess in (1e-6, 1e-3, 1e3, 1e9):
        result = line_search(lambda t: 1 - t + t * t, 1.0, guess=guess)
        np.testing.assert_allclose(result.step, 1.0, rtol=1e-6)


def test_a_start_in_the_next_valley_comes_back_to_the_first_crossing():
    """L = 1 - cos w at w = 1 along sin 1: up again at w = -1; half of 15 lies beyond the hill, lower than the start."""
    problem = along(lambda o: 1 - torch.cos(o + 1))
    exact = 2 / math.sin(1)
    cold = landscape.critical_sharpness(problem)
    np.testing.assert_allclose(cold.step, exact, rtol=1e-2)
    for start in (3.0, 4.7, 15.0, 29.0, 480.0, 1e4):
        result = landscape.critical_sharpness(problem, start)
        assert result.below < exact <= result.above
        np.testing.assert_allclose(result.step, exact, rtol=1e-2)
        assert result.first < exact
    assert landscape.critical_sharpness(problem, 1.99 * exact).forwards <= 7


def test_a_cold_search_of_a_loss_far_from_zero_starts_before_the_crossing():
    """A thousandth of 1e5 over the slope is a step of 141, in another valley."""
    result = landscape.critical_sharpness(along(lambda o: 1e5 + 1 - torch.cos(o + 1)))
    np.testing.assert_allclose(result.step, 2 / math.sin(1), rtol=1e-2)


def test_a_kink_at_the_weights_is_passed_where_every_step_lowers_the_loss():
    """The slope 1 holds up to 1e-14, behind it 1e-3: no step above rounding lowers the loss by an eighth of it."""
    result = line_search(lambda t: 1 - min(t, 1e-14) - 1e-3 * t + 1e-3 * t * t, 1.0, rounding=1e-13)
    np.testing.assert_allclose(result.step, 1.0, rtol=0.05)


@pytest.mark.parametrize("tol", [1e-16, 1e-300])
def test_a_bracket_ends_at_neighboring_numbers(tol):
    """Where the loss is a staircase of roundings its differences repeat, and the parabola may have no curvature."""
    lines = (
        lambda t: 1 - t + t * t,
        lambda t: 2 - t + t**4,
        lambda t: 1 - t + 40 * max(t - 0.2, 0),
        lambda t: (t - 1) ** 2,
    )
    for f in lines:
        result = line_search(f, 1.0, tol=tol)
        assert f(result.below) <= f(0.0) < f(result.above)
        assert result.above == math.nextafter(result.below, math.inf)
        assert result.forwards < 400
    _, problem, a, g = quadratic()
    step = landscape.critical_sharpness(problem, tol=tol).step
    np.testing.assert_allclose(step, 2 * float(g @ g / (g @ a @ g)), rtol=1e-12)


def test_curves_that_are_no_quadratics_are_bracketed_within_the_tolerance():
    cases = {
        "quartic": (lambda t: 2 - t + t**4, 1.0),
        "exponential": (lambda t: 1 - t + math.expm1(t) - t, None),
        "kink": (lambda t: 1 - min(t, 0.2) + 40 * max(t - 0.2, 0), 0.2 + 0.2 / 40),
        "wall": (lambda t: 1 - t + max(t - 0.5, 0) ** 8 * 1e9, None),
    }
    for name, (f, exact) in cases.items():
        for tol in (0.2, 0.05, 0.001):
            result = line_search(f, 1.0, tol=tol)
            assert f(result.below) <= f(0) < f(result.above), name
            assert result.above - result.below <= tol * result.above
            if exact is not None:
                np.testing.assert_allclose(result.step, exact, rtol=tol)
            assert result.forwards < 60


def test_rounding_alone_is_refused():
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    problem = landscape.Problem(
        model, lambda o, t: 1 + 1e-9 * torch.sin(1e6 * o.reshape(-1)), [(torch.ones(1, 1), torch.zeros(1))]
    )
    with pytest.raises(InputError, match=r"do not lower the loss by more than its rounding \(.*\): compute in float64"):
        landscape.critical_sharpness(problem)


@pytest.mark.parametrize("measure", [landscape.critical_sharpness, landscape.directional_sharpness])
def test_directions_that_do_not_descend_are_refused(measure):
    _, problem, _, g = quadratic()
    for d in (-g, torch.zeros_like(g)):
        with pytest.raises(InputError, match=r"d'g = .*d'g > 0"):
            measure(problem, direction=d)


@pytest.mark.parametrize("measure", [landscape.critical_sharpness, landscape.directional_sharpness])
def test_a_direction_is_scaled_within_the_range_of_float64(measure):
    _, problem, _, g = quadratic()
    whole = measure(problem).value
    for scale in (1e-60, 1e60):
        np.testing.assert_allclose(measure(problem, direction=g * scale).value, whole * scale, rtol=1e-8)
    for scale in (1e-200, 1e80):
        with pytest.raises(InputError, match=r"the largest entry of the direction is .*e[-+]\d+: .* scale") as error:
            measure(problem, direction=g * scale)
        assert "\n" not in str(error.value)


def test_a_stationary_point_has_no_direction():
    model, batches = network()
    with torch.no_grad():
        model.last.weight.zero_()
    problem = landscape.Problem(model, lambda o, t: 0 * o.sum(dim=1), batches)
    with pytest.raises(InputError, match="the gradient is zero: a step"):
        landscape.critical_sharpness(problem)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bound": 0}, "bound=0: a positive multiple"),
        ({"bound": math.inf}, "bound=inf"),
        ({"tol": 0}, "tol=0: the width"),
        ({"tol": 1}, "tol=1"),
        ({"start": -1.0}, "start=-1: a positive step is needed"),
    ],
)
def test_options_out_of_range_are_told(options, message):
    with pytest.raises(InputError, match=message):
        landscape.critical_sharpness(quadratic()[1], **options)


def test_a_loss_that_is_not_finite_at_the_weights_is_told():
    with pytest.raises(InputError, match="the loss at the weights themselves is not finite"):
        landscape.critical_sharpness(along(lambda o: o + torch.nan))


# -- curvature from losses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_on_a_quadratic_second_differences_are_exact(seed):
    _, problem, _, _ = quadratic(seed, indefinite=seed == 2)
    right = landscape.directional_sharpness(problem)
    found = landscape.directional_sharpness(problem, hvp="losses")
    assert abs(found.value - right.value) <= found.error_bound < 1e-9 * (1 + abs(right.value))
    assert found.cost["hvp"] == 0 < right.cost["hvp"]
    assert (right.error_bound, right.forwards, right.neighboring_start) == (None, 0, None)
    assert found.provenance["kinks"] == []


@pytest.mark.parametrize("start", [None, 1e-6, 1e-2, 10.0, 1e4])
def test_second_differences_of_a_network_are_right_from_any_start(start):
    model, batches = network()
    problem = landscape.Problem(model, nn.functional.cross_entropy, batches)
    right = landscape.directional_sharpness(problem)
    found = landscape.directional_sharpness(problem, start, hvp="losses")
    assert abs(found.value - right.value) <= found.error_bound < 0.05 * right.value
    assert found.forwards == found.cost["forward"] <= 14
    assert abs(found.curvature - right.curvature) * found.length**2 / found.slope <= found.error_bound


def test_second_differences_meet_walls_lines_and_wrong_starts():
    wall = along(lambda o: torch.where(o < 0.3, 1 - o + o * o, math.nan * torch.ones_like(o)))
    found = landscape.directional_sharpness(wall, hvp="losses")
    assert abs(found.value - 2) <= found.error_bound < 1e-6
    line = landscape.directional_sharpness(along(lambda o: 1 - o), hvp="losses")
    assert abs(line.value) <= line.error_bound < 1e-9
    kinked = landscape.directional_sharpness(along(lambda o: 1 - o + o * o + torch.relu(o - 0.7)), hvp="losses")
    assert kinked.provenance["kinks"] == ["relu"]
    with pytest.raises(InputError, match="start=-1: a positive step is needed"):
        landscape.directional_sharpness(wall, -1.0, hvp="losses")
    edge = along(lambda o: torch.where(o >= 0, 1 - o, math.nan * torch.ones_like(o)))
    with pytest.raises(InputError, match="have losses that are nan or inf on one side"):
        landscape.directional_sharpness(edge, hvp="losses")
