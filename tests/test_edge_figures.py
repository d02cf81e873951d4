"""The figures of the optimizers' edges: trainings beside plain ones, curvature beside dense matrices, verdicts."""

import numpy as np
import pytest
import torch

from figures import FIGURES
from figures.paper.critical_sharpness import POINTS, follow, scheduled
from figures.paper.edge_of_stability import tanh_problem
from figures.paper.optimizer_edges import ROWS, train_at_edge
from figures.study.figure_data import FigureData
from figures.study.tasks import Machine

COMMON = {"data": "digits", "samples": 24, "hidden": 2, "label_noise": 0.2, "seed": 3, "machine": Machine()}


def plain():
    """w -> loss, gradient and Hessian of the same network by plain torch, and its weights."""
    problem = tanh_problem(loss="squared error", **COMMON)
    network, (batch,) = problem.model, problem.batches
    (x,), y = batch.args, batch.target
    layout = [(n, p.shape) for n, p in network.named_parameters()]

    def loss(w, rows=slice(None)):
        parts = w.split([s.numel() for _, s in layout])
        named = {n: v.view(s) for (n, s), v in zip(layout, parts, strict=True)}
        outputs = torch.func.functional_call(network, named, (x[rows],))
        return 0.5 * ((outputs - torch.eye(10)[y[rows]]) ** 2).sum() / len(outputs)

    return loss, torch.func.grad(loss), torch.func.hessian(loss), problem.weights.clone()


def test_the_labels_are_wrong_as_often_as_it_says_and_the_network_is_reproducible():
    one, other = (tanh_problem(loss="squared error", **{**COMMON, "label_noise": n, "samples": 500}) for n in (0, 0.2))
    (a,), (b,) = one.batches, other.batches
    assert torch.equal(one.weights, other.weights)
    assert torch.equal(a.args[0], b.args[0])
    assert 0.12 < float((a.target != b.target).double().mean()) < 0.28


@pytest.mark.parametrize("name", ROWS)
def test_every_optimizer_is_trained_as_its_formula_says_and_measured_where_it_is(name):
    rate, beta = {"Adam": 0.01, "sign descent": 0.001}.get(name, 0.1), 0.9
    result = train_at_edge(optimizer=name, lr=rate, steps=4, points=2, batch=8, tolerance=1e-8, **COMMON)
    loss, gradient, hessian, w = plain()
    draws = torch.Generator().manual_seed(3)
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    for step in range(1, 5):
        rows = torch.randperm(24, generator=draws)[:8]
        g = gradient(w, rows) if name == "SGD" else gradient(w)
        if name == "Adam":
            m, v = beta * m + (1 - beta) * g, 0.99 * v + 0.01 * g * g
            p = (1 - beta**step) * ((v / (1 - 0.99**step)).sqrt() + 1e-8)
            w = w - rate * m / p
        elif name == "momentum":
            m = beta * m + g
            w = w - rate * m
        else:
            w = w - rate * (g.sign() if name == "sign descent" else g)
        if step % 2:
            continue
        at = step // 2 - 1
        assert result["step"][at] == step
        assert result["loss"][at] == pytest.approx(float(loss(w)), rel=1e-9)
        h = hessian(w)
        top = float(torch.linalg.eigvalsh(h)[-1])
        if name == "Adam":
            top = float(torch.linalg.eigvals(h / p[:, None]).real.max())
        if name in ("gradient descent", "momentum", "Adam"):
            assert result["curvature"][at] == pytest.approx(top, rel=1e-5)
        lines = {"gradient descent": 2, "momentum": 3.8, "Adam": 38, "SGD": 2}
        line = lines.get(name, 2 * float(gradient(w).abs().sum())) / rate
        assert result["line"][at] == pytest.approx(line, rel=1e-9)
        if name == "sign descent":
            s = gradient(w).sign()
            assert float(s @ h @ s) * (1 - 1e-9) <= result["curvature"][at] <= len(w) * top
        if name == "SGD":
            assert 0 < result["curvature"][at] < 50


def test_the_schedule_rises_stays_and_falls():
    assert [scheduled(p) for p in (0.1, 0.2, 0.5, 0.75)] == [0.5, 1.0, 1.0, 1.0]
    assert scheduled(0.0) == 0.01
    assert scheduled(0.875) == pytest.approx(0.55)
    assert scheduled(1.0) == pytest.approx(0.1)


@pytest.mark.parametrize("name", ["gradient descent", "AdamW"])
def test_critical_sharpness_is_followed_along_the_next_update(name):
    lr = 0.1 if name == "gradient descent" else 0.01
    result = follow(optimizer=name, lr=lr, steps=10, points=5, tolerance=1e-6, **COMMON)
    assert result["step"].tolist() == [2, 4, 6, 8, 10]
    loss, gradient, _, w = plain()
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    for step in range(10):
        rate = lr * (scheduled(step / 10) if name == "AdamW" else 1.0)
        g, t = gradient(w), step + 1
        if name == "AdamW":
            m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
            w = (1 - 0.01 * rate) * w - rate * (m / (1 - 0.9**t)) / ((v / (1 - 0.95**t)).sqrt() + 1e-8)
        else:
            w = w - rate * g
        if step % 2 == 0:
            continue
        at = step // 2
        assert result["loss"][at] == pytest.approx(float(loss(w)), rel=1e-9)
        assert result["rate"][at] == pytest.approx(rate, rel=1e-12)
        edge = 38 / rate - 0.01 * 19 if name == "AdamW" else 2 / rate
        assert result["edge"][at] == pytest.approx(edge, rel=1e-9)
        g = gradient(w)
        d = g
        if name == "AdamW":
            m2, v2, t2 = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g, t + 1
            d = 0.01 * w + (m2 / (1 - 0.9**t2)) / ((v2 / (1 - 0.95**t2)).sqrt() + 1e-8)
        step_c = 2 / result["critical"][at]
        assert float(loss(w - 0.97 * step_c * d)) < float(loss(w)) < float(loss(w - 1.03 * step_c * d))
        assert result["forwards"][at] >= 4


def edges(ratios):
    """Numbers of optimizer-edges with this curvature over the line at every point."""
    numbers = FigureData()
    for axis, values in (("optimizer", list(ROWS)), ("seed", range(3)), ("point", range(50))):
        numbers.axis(axis, values)
    numbers.add("line", ("optimizer", "seed", "point"), np.full((5, 3, 50), 20.0))
    wave = 1 + 0.01 * np.arange(3)[:, None]
    numbers.add("curvature", ("optimizer", "seed", "point"), 20.0 * np.array(ratios)[:, None, :] * wave)
    return numbers


def test_the_second_half_of_the_training_is_judged():
    rising = np.concatenate([np.full(25, 0.1), np.full(25, 1.0)])
    claims = FIGURES["optimizer-edges"]().judge(
        edges([rising, 1.5 * rising, 0.5 * rising, rising[::-1], 0.79 * rising])
    )
    assert [c.verdict for c in claims] == ["supported", *["not supported"] * 3, "undecided"]
    assert claims[0].ours.value == pytest.approx(1.01)


def test_updates_that_rise_have_no_number_and_the_rest_is_judged():
    numbers = FigureData()
    for axis, values in (("optimizer", ["gradient descent", "AdamW"]), ("seed", range(3)), ("step", range(POINTS))):
        numbers.axis(axis, values)
    numbers.add("rate", ("optimizer", "step"), np.full((2, POINTS), 0.1))
    shape, wave = (2, 3, POINTS), 1 + 0.01 * np.arange(3)[None, :, None]
    for name, value in (
        ("eigenvalue", 20.0),
        ("edge", 20.0),
        ("critical", 20.0),
        ("directional", 20.0),
        ("forwards", 5),
    ):
        numbers.add(name, ("optimizer", "seed", "step"), np.full(shape, value) * wave)
    numbers["critical"][0, :, :25] = 1.0
    numbers["critical"][1, :, ::2] = np.nan
    claims = FIGURES["critical-sharpness"]().judge(numbers)
    assert [c.verdict for c in claims] == ["supported"] * 6
    assert claims[1].ours.value == pytest.approx(np.mean(1 / (20 * wave[0, :, 0])))
    numbers["critical"][1] = np.nan
    assert FIGURES["critical-sharpness"]().judge(numbers)[4].verdict == "undecided"
