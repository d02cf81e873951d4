"""Edges of stability against the spectral radius of every optimizer's frozen iteration, computed densely."""

import numpy as np
import pytest
import torch
from curvature_cases import dense_hessian
from edge_cases import OPTIMIZERS, network, quadratic, trained
from torch import nn

import landscape
from landscape.curvature.frozen_step import frozen_step
from landscape.errors import InputError


def with_state(model, make, seed=0):
    """An optimizer with a drawn state, as after some steps."""
    optimizer = make(list(model.parameters()))
    generator = torch.Generator().manual_seed(seed)
    for group in optimizer.param_groups:
        for p in group["params"]:

            def drawn(p=p):
                return torch.rand(p.shape, generator=generator, dtype=p.dtype) + 0.05

            kind, state = type(optimizer), {"step": torch.tensor(7.0)}
            if kind in (torch.optim.Adam, torch.optim.AdamW):
                state |= {"exp_avg": drawn(), "exp_avg_sq": drawn()}
                state |= {"max_exp_avg_sq": drawn() + 1} if group["amsgrad"] else {}
            elif kind is torch.optim.RMSprop:
                state |= {"square_avg": drawn() + 1, "momentum_buffer": drawn()}
                state |= {"grad_avg": drawn() / 2} if group["centered"] else {}
            elif kind is torch.optim.Adagrad:
                state |= {"sum": drawn()}
            elif group["momentum"]:
                state = {"momentum_buffer": drawn()}
            else:
                state = {}
            optimizer.state[p] = state
    return optimizer


def radius(optimizer, a):
    """Spectral radius of (w, m) -> the next (w, m) with P fixed, by torch's documented recursions written out."""
    d = len(a)
    per_parameter = []
    for group in optimizer.param_groups:
        for p in group["params"]:
            per_parameter += [
                (group, {k: _entry(v, i) for k, v in optimizer.state[p].items()}) for i in range(p.numel())
            ]

    def column(f):
        return torch.tensor([float(f(group, state)) for group, state in per_parameter], dtype=a.dtype)

    kind = type(optimizer)
    lr, gamma = column(lambda g, s: g["lr"]), column(lambda g, s: g["weight_decay"])
    if kind is torch.optim.SGD:
        beta, tau = column(lambda g, s: g["momentum"]), column(lambda g, s: g["dampening"])
        gain = torch.where(beta == 0, torch.ones_like(beta), 1 - tau)
        scale, shrink = torch.ones(d, dtype=a.dtype), torch.ones(d, dtype=a.dtype)
        h = a + torch.diag(gamma)
    elif kind in (torch.optim.Adam, torch.optim.AdamW):
        beta = column(lambda g, s: g["betas"][0])
        gain = 1 - beta

        def p_of(g, s):
            v = s["max_exp_avg_sq"] if g["amsgrad"] else s["exp_avg_sq"]
            return (1 - g["betas"][0] ** 7) * ((v / (1 - g["betas"][1] ** 7)) ** 0.5 + g["eps"])

        scale = column(p_of)
        coupled = kind is torch.optim.Adam
        h = a + torch.diag(gamma) if coupled else a
        shrink = torch.ones(d, dtype=a.dtype) if coupled else 1 - lr * gamma
    elif kind is torch.optim.RMSprop:
        beta, gain = column(lambda g, s: g["momentum"]), torch.ones(d, dtype=a.dtype)

        def p_of(g, s):
            v = s["square_avg"] - (s["grad_avg"] ** 2 if g["centered"] else 0)
            return v**0.5 + g["eps"]

        scale, shrink, h = column(p_of), torch.ones(d, dtype=a.dtype), a + torch.diag(gamma)
    else:
        beta, gain = torch.zeros(d, dtype=a.dtype), torch.ones(d, dtype=a.dtype)
        scale = column(lambda g, s: (1 + 6 * g["lr_decay"]) * (s["sum"] ** 0.5 + g["eps"]))
        shrink, h = torch.ones(d, dtype=a.dtype), a + torch.diag(gamma)
    force = torch.diag(gain / scale) @ h  # what a weight adds to the (preconditioned) momentum
    memory = torch.diag(beta)
    if optimizer.param_groups[0].get("nesterov"):
        along_w, along_m = force + memory @ force, memory @ memory
    else:
        along_w, along_m = force, memory
    rate = torch.diag(lr)
    top = torch.cat([torch.diag(shrink) - rate @ along_w, -rate @ along_m], dim=1)
    bottom = torch.cat([force, memory], dim=1)
    return float(torch.linalg.eigvals(torch.cat([top, bottom])).abs().max())


def _entry(value, i):
    return value.reshape(-1)[i] if value.dim() else value


MAKERS = {
    "GD": lambda p: torch.optim.SGD(p, lr=0.1),
    "GD, coupled decay": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.7),
    "heavy ball": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "heavy ball, dampened, decay": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8, dampening=0.3, weight_decay=0.4),
    "Nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "Nesterov, decay": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.5, nesterov=True, weight_decay=0.9),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "Adam, coupled decay": lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.8, 0.9), weight_decay=0.5),
    "AMSGrad": lambda p: torch.optim.Adam(p, lr=0.1, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.6),
    "AdamW, no momentum": lambda p: torch.optim.AdamW(p, lr=0.1, betas=(0.0, 0.9), weight_decay=0.6),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.1),
    "RMSprop, momentum, centered, decay": lambda p: torch.optim.RMSprop(
        p, lr=0.1, momentum=0.6, centered=True, weight_decay=0.3
    ),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, lr_decay=0.2, weight_decay=0.2),
    "groups": lambda p: torch.optim.SGD(
        [{"params": p[:1], "lr": 0.1, "weight_decay": 0.5}, {"params": p[1:], "lr": 0.02}], lr=1.0, momentum=0.9
    ),
    "AdamW, groups": lambda p: torch.optim.AdamW(
        [{"params": p[:1], "weight_decay": 0.9}, {"params": p[1:], "weight_decay": 0.0, "lr": 0.03}], lr=0.1
    ),
}


@pytest.mark.parametrize("name", MAKERS)
def test_the_edge_is_where_the_spectral_radius_passes_one(name):
    """At the learning rate at which value = edge the radius is 1; 0.1% below it is less, 0.1% above more."""
    model, problem, a, _ = quadratic(3)
    optimizer = with_state(model, MAKERS[name])
    rates = [group["lr"] for group in optimizer.param_groups]

    def at(factor):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        result = landscape.preconditioned_sharpness(problem, optimizer, tol=1e-11)
        return result, radius(optimizer, a)

    low, high = 1e-3, 1e4
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if at(middle)[0].ratio < 1 else (low, middle)
    stable, unstable = at(low * 0.999), at(high * 1.001)
    assert stable[0].ratio < 1 < unstable[0].ratio
    assert stable[1] < 1 < unstable[1]
    assert abs(at(low)[1] - 1) < 1e-6


@pytest.mark.parametrize(
    ("name", "edge"),
    [
        ("GD", 2 / 0.1),
        ("GD, coupled decay", 2 / 0.1 - 0.7),
        ("heavy ball", (2 + 2 * 0.9) / 0.1),
        ("Nesterov", (2 + 2 * 0.9) / ((1 + 2 * 0.9) * 0.1)),
        ("Adam", 38 / 0.1),
        ("AdamW", 38 / 0.1 - 0.6 * 1.9 / 0.1),
        ("AdamW, no momentum", 2 / 0.1 - 0.6),
        ("RMSprop", 2 / 0.1),
    ],
)
def test_edges_in_closed_form(name, edge):
    model, problem, a, _ = quadratic(3)
    optimizer = with_state(model, MAKERS[name])
    result = landscape.preconditioned_sharpness(problem, optimizer, tol=1e-10)
    np.testing.assert_allclose(result.edge, edge, rtol=1e-12)
    inverse = torch.diag(frozen_step(problem, optimizer).inverse)
    np.testing.assert_allclose(result.value, torch.linalg.eigvals(inverse @ a).real.max(), rtol=1e-8)
    assert (result.ratio < 1) == (result.value < edge)


@pytest.mark.parametrize("name", ["sgd", "momentum", "nesterov", "adam", "amsgrad", "adamw", "rmsprop", "adagrad"])
def test_the_frozen_step_is_the_real_one_near_the_state(name):
    """P from the state: a real step with the moments held fixed moves the weights by -eta P^-1 m."""
    model, batches = network()
    optimizer = trained(model, batches, OPTIMIZERS[name], steps=4)
    problem = landscape.Problem(model, nn.functional.cross_entropy, batches)
    result = landscape.preconditioned_sharpness(problem, optimizer, tol=1e-9)
    step, h = frozen_step(problem, optimizer), dense_hessian(problem)
    expected = torch.linalg.eigvals(torch.diag(step.inverse) @ h).real.max()
    np.testing.assert_allclose(result.value, expected, rtol=1e-6)
    decayed = torch.linalg.eigvals(torch.diag(step.inverse) @ h + torch.diag(step.decay)).real.max()
    np.testing.assert_allclose(result.decayed, decayed, rtol=1e-6)


@pytest.mark.parametrize("name", ["adam", "rmsprop", "adagrad"])
def test_the_preconditioner_is_what_divides_the_gradient(name):
    """With the decays of its moments at one, a step of the real optimizer leaves P as it is."""
    model, problem, _, g = quadratic(5)
    make = {
        "adam": lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.0, 1 - 1e-15)),
        "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1, alpha=1 - 1e-15),
        "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    }[name]
    optimizer = with_state(model, make)
    for state in optimizer.state.values():
        for key in ("exp_avg_sq", "sum"):
            if key in state:
                state[key] = state[key] * 1e12  # so that the new gradient's square changes nothing
    if name == "adam":
        for state in optimizer.state.values():
            state["step"] = torch.tensor(1e18)
    d = landscape.sharpness.updates.optimizer_direction(problem, optimizer, g)
    torch.testing.assert_close(d, frozen_step(problem, optimizer).inverse * g, rtol=1e-6, atol=1e-12)


def test_a_part_of_the_parameters_and_what_the_optimizer_does_not_hold():
    model, batches = network()
    optimizer = trained(model, batches, OPTIMIZERS["adam"])
    part = landscape.Problem(model, nn.functional.cross_entropy, batches, parameters="last")
    whole = landscape.Problem(model, nn.functional.cross_entropy, batches)
    step, full = frozen_step(part, optimizer), frozen_step(whole, optimizer)
    torch.testing.assert_close(step.inverse, full.inverse[-part.dimension :])
    only = torch.optim.SGD([model.last.weight], lr=0.1)
    step = frozen_step(whole, only)
    assert int((step.inverse != 0).sum()) == model.last.weight.numel()
    block = dense_hessian(whole)[step.inverse != 0][:, step.inverse != 0]
    value = landscape.preconditioned_sharpness(whole, only, tol=1e-9).value
    np.testing.assert_allclose(value, torch.linalg.eigvalsh(block)[-1], rtol=1e-7)


def test_a_rate_of_zero_has_no_edge():
    model, problem, _, _ = quadratic()
    result = landscape.preconditioned_sharpness(problem, torch.optim.SGD(model.parameters(), lr=0.0))
    assert result.edge == np.inf
    assert result.ratio == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: torch.optim.Muon([m.matrix]), "Muon has no diagonal preconditioner that is known here"),
        (lambda m: torch.optim.NAdam(m.parameters()), "NAdam has no diagonal preconditioner"),
        (
            lambda m: torch.optim.Adam(m.parameters()),
            "the optimizer has no state of matrix: .* comes with the first step",
        ),
        (
            lambda m: torch.optim.Adagrad(m.parameters()),
            "the optimizer has no state of matrix: .* comes with the first step",
        ),
        (lambda m: torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1), "the SGD holds none of the parameters"),
        (lambda m: torch.optim.SGD(m.parameters(), lr=1, maximize=True), "the optimizer maximizes"),
        (
            lambda m: torch.optim.SGD([{"params": [m.matrix], "momentum": 0.9}, {"params": [m.bias]}], lr=1),
            "groups differ in momentum",
        ),
    ],
)
def test_what_has_no_edge_is_told(make, message):
    model, problem, _, _ = quadratic()
    with pytest.raises(InputError, match=message) as error:
        landscape.preconditioned_sharpness(problem, make(model))
    assert "\n" not in str(error.value)


def test_the_sentence_says_on_which_side_of_the_edge():
    model, problem, _, _ = quadratic()
    says = landscape.MEASURES["preconditioned_sharpness"].says
    for rate, word in ((1e-3, "Below"), (1e3, "Above")):
        optimizer = torch.optim.SGD(model.parameters(), lr=rate)
        text = says(landscape.preconditioned_sharpness(problem, optimizer).summary(), 1.0)
        assert text.startswith(word)
        assert "SGD is stable" in text
    assert says({"value": 1.0, "edge": None}, 1.0) == ""


def test_at_a_maximum_no_learning_rate_is_said_to_be_stable():
    """All curvature negative: w <- (1 - eta h) w grows; decay above it makes the iteration stable again."""
    model, problem, a, _ = quadratic()
    says = landscape.MEASURES["preconditioned_sharpness"].says
    a.neg_()  # in the model, too
    for rate in (1e-3, 0.1, 10.0):
        optimizer = torch.optim.SGD(model.parameters(), lr=rate)
        result = landscape.preconditioned_sharpness(problem, optimizer)
        assert result.value < 0
        assert radius(with_state(model, lambda p, rate=rate: torch.optim.SGD(p, lr=rate)), a) > 1
        assert says(result.summary(), 1.0) == (
            "Negative: the steps of SGD grow along negative curvature at every learning rate."
        )
    decay = float(torch.linalg.eigvalsh(a)[0].abs()) + 1
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, weight_decay=decay)
    assert says(landscape.preconditioned_sharpness(problem, optimizer).summary(), 1.0).startswith("Below")
