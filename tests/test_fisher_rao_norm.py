"""Fisher-Rao norm and relative flatness: closed forms, and what each is invariant under."""

import copy
import math

import numpy as np
import pytest
import torch
from curvature_cases import case, dense_ggn, dense_hessian, everything, problem_of
from invariance_cases import table_2
from sharpness_cases import raw, rescaled, trained
from torch import nn

import landscape
from landscape.errors import InputError
from landscape.invariance.measures import InvarianceOptions

# -- Fisher-Rao norm ---------------------------------------------------------------------------------------------------


def test_norm_is_the_form_of_the_dense_matrix():
    problem = case("cnn")
    w = problem.weights
    found = landscape.fisher_rao_norm(problem)
    assert found.square == pytest.approx((w @ dense_ggn(problem) @ w).item(), rel=1e-8)
    assert found.value == math.sqrt(found.square)
    x, y = everything(problem)
    model = problem.model.eval()
    squares = []
    for i in range(len(x)):
        loss = nn.functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
        g = torch.autograd.grad(loss, list(model.parameters()))
        squares.append(sum((a * b).sum() for a, b in zip(g, model.parameters(), strict=True)).item() ** 2)
    empirical = landscape.fisher_rao_norm(problem, matrix="empirical-fisher")
    assert empirical.square == pytest.approx(np.mean(squares), rel=1e-8)


def homogeneous():
    return problem_of(
        nn.Sequential(
            *(nn.Linear(6, 8, bias=False), nn.LeakyReLU(0.2), nn.Linear(8, 5, bias=False), nn.ReLU()),
            nn.Linear(5, 3, bias=False),
        )
    )


def test_closed_form_of_a_homogeneous_network():
    """Depth 3: w'Fw = 9 mean f'Bf for the model's labels, 9 mean <dl/df, f>^2 for the true ones (Liang's theorem)."""
    problem = homogeneous()
    f = problem.outputs()
    _, y = everything(problem)
    p = torch.softmax(f, dim=1)
    form = (f * p * f).sum(1) - (p * f).sum(1) ** 2
    slope = ((p - nn.functional.one_hot(y, 3)) * f).sum(1) ** 2
    assert landscape.fisher_rao_norm(problem).square == pytest.approx(9 * form.mean().item(), rel=1e-10)
    empirical = landscape.fisher_rao_norm(problem, matrix="empirical-fisher")
    assert empirical.square == pytest.approx(9 * slope.mean().item(), rel=1e-10)
    # Targets drawn from the model: the mean over many draws is the exact one. 400 draws of 9 examples.
    draws = [landscape.fisher_rao_norm(problem, matrix="mc-fisher", seed=s).square for s in range(400)]
    assert abs(np.mean(draws) - 9 * form.mean().item()) < 4 * np.std(draws) / 20


def test_norm_stays_under_rescaling_with_biases():
    model, problem = trained()
    tau = torch.exp(torch.linspace(-1, 1, 16, dtype=torch.float64))
    other = landscape.Problem(rescaled(model, [tau, tau.flip(0)]), nn.functional.cross_entropy, raw(problem))
    for matrix in ("fisher", "empirical-fisher"):
        a, b = (landscape.fisher_rao_norm(q, matrix=matrix).value for q in (problem, other))
        assert b == pytest.approx(a, rel=1e-10)


def test_subsets_of_the_examples():
    _, problem = trained()
    found = landscape.fisher_rao_norm(problem, subsets=4)
    assert found.subsets.shape == (4,)
    assert found.interval[0] < found.value < found.interval[1]
    np.testing.assert_allclose((found.subsets**2).mean(), found.square, rtol=1e-8)


def test_losses_without_a_fisher_matrix_are_refused():
    torch.manual_seed(0)
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])
    logs = nn.Sequential(nn.Linear(4, 3), nn.LogSoftmax(1)).double()
    with pytest.raises(InputError, match="linear in the outputs"):
        landscape.fisher_rao_norm(landscape.Problem(logs, nn.NLLLoss(), [(x, y)]))
    plain = landscape.Problem(nn.Linear(4, 3).double(), nn.CrossEntropyLoss(), [(x, y)])
    with pytest.raises(InputError, match="one of fisher"):
        landscape.fisher_rao_norm(plain, matrix="hessian")
    assert landscape.fisher_rao_norm(plain).label == "Fisher-Rao norm"


# -- relative flatness -------------------------------------------------------------------------------------------------


def by_hand(problem, name):
    """sum_{s,t} <w_s, w_t> tr H_st from the dense Hessian, row by row."""
    h, slot = dense_hessian(problem), next(s for s in problem.parameters if s.name == name)
    rows = problem.parameters.unflatten(problem.weights)[problem.parameters.names.index(name)].flatten(1)
    n, m = rows.shape
    block = h[slot.start : slot.stop, slot.start : slot.stop].view(n, m, n, m)
    return sum((rows[s] @ rows[t] * block[s, :, t].trace()).item() for s in range(n) for t in range(n))


def test_flatness_is_the_sum_over_blocks_of_the_dense_hessian():
    problem = case("cnn")  # convolutions, and a linear layer with fewer rows than inputs
    names = [s.name for s in problem.parameters if s.kind == "weight"]
    found = landscape.relative_flatness(problem, layer="all", probes=200)
    assert found.exact
    assert found.layers == names
    np.testing.assert_allclose(found.layer_values, [by_hand(problem, n) for n in names], rtol=1e-8)
    assert found.value == pytest.approx(found.layer_values.sum())
    assert landscape.relative_flatness(problem, probes=200).value == pytest.approx(found.layer_values[-1], rel=1e-10)
    assert landscape.relative_flatness(problem, layer="first", probes=200).layers == names[:1]
    named = landscape.relative_flatness(problem, layer="3", probes=200)
    assert named.layers == ["3.weight"]
    assert named.value == pytest.approx(found.layer_values[1], rel=1e-10)


def test_closed_form_of_the_last_layer_under_cross_entropy():
    model, problem = trained()
    x, _ = (torch.cat(part) for part in zip(*raw(problem), strict=True))
    features = model[:-1](x).detach()
    p, g = torch.softmax(problem.outputs(), dim=1), model[-1].weight.detach() @ model[-1].weight.detach().mT
    form = p @ g.diagonal() - ((p @ g) * p).sum(1)
    expected = (features.square().sum(1) * form).mean().item()
    found = landscape.relative_flatness(problem, probes=48)
    assert found.exact
    assert found.value == pytest.approx(expected, rel=1e-9)
    sampled = [landscape.relative_flatness(problem, probes=20, seed=s) for s in range(20)]
    assert not sampled[0].exact
    errors = [abs(s.value - expected) / s.stderr for s in sampled]
    assert np.mean(np.array(errors) < 1.96) >= 0.8


def test_of_least_squares_it_is_ridge_regressions_penalty():
    """One output: ||w||^2 tr H, with tr H = 2 mean ||x||^2."""
    torch.manual_seed(0)
    line, x = nn.Linear(4, 1).double(), torch.randn(20, 4, dtype=torch.float64)
    problem = landscape.Problem(line, nn.MSELoss(), [(x, torch.randn(20, 1, dtype=torch.float64))])
    expected = line.weight.square().sum() * 2 * x.square().sum(1).mean()
    assert landscape.relative_flatness(problem).value == pytest.approx(expected.item(), rel=1e-10)


def test_which_rescalings_leave_relative_flatness():
    model, problem = trained()
    per_unit = [torch.exp(torch.linspace(-1, 1, 16, dtype=torch.float64)), torch.full((16,), 1.7, dtype=torch.float64)]
    alike = [torch.full((16,), c, dtype=torch.float64) for c in (3.0, 0.2)]
    for factors, kept in ((alike, ("first", "2", "last")), (per_unit, ("first", "last"))):
        other = landscape.Problem(rescaled(model, factors), nn.functional.cross_entropy, raw(problem))
        for layer in ("first", "2", "last"):
            # 20 probes: the estimate too follows the rows, with the same probes.
            a, b = (landscape.relative_flatness(q, layer=layer, probes=20).value for q in (problem, other))
            assert (abs(b / a - 1) < 1e-9) == (layer in kept), layer


def test_names_of_layers():
    _, problem = trained(steps=0)
    with pytest.raises(InputError, match="unknown layer 'lats': did you mean 'last'"):
        landscape.relative_flatness(problem, layer="lats")
    with pytest.raises(InputError, match="no parameter is the weight"):
        landscape.relative_flatness(problem.restricted("*.bias"))


# -- the invariance test -----------------------------------------------------------------------------------------------


def test_invariance_shows_both():
    before = copy.deepcopy(table_2().model.state_dict())
    problem = table_2()
    found = landscape.rescaling_invariance(problem, transforms=3, settings=InvarianceOptions(steps=0, orders=(2.0,)))
    assert found.verdict("fisher_rao_norm") == "invariant (to rounding)"
    assert found.spread("fisher_rao_norm") < 1e-9
    assert found.verdict("relative_flatness_first_layer") == "invariant (to rounding)"
    assert found.verdict("relative_flatness").startswith("varies")
    assert found.verdict("soft_rank").startswith("varies")
    assert all(torch.equal(t, before[n]) for n, t in problem.model.state_dict().items())
