"""The first three steps of every method against a slow reference written from its formula (tests/method_oracles.py)."""

from __future__ import annotations

import pytest
import torch
from method_oracles import ORACLES
from oracle_network import BATCH, CLASSES, DECAY, EXAMPLES, LR, MOMENTUM, SEED, STEPS, At, Net, examples, network
from torch import nn

from landscape.problem.batches import Batch
from trainers import METHODS, Context, Task


class TrainingSet:
    examples, classes = EXAMPLES, CLASSES

    def batch(self, indices):
        x, y = examples()
        return Batch((x[indices],), {}, y[indices], len(indices))


def rate(t):
    return LR - (LR - 0.05) * t / STEPS


def rows_of(t):
    """Every batch holds the same examples in another order, so that what is stored by example is read."""
    return torch.randperm(BATCH, generator=torch.Generator().manual_seed(t))


def context(t):
    return Context(
        epoch=t,
        step=t,
        total_steps=STEPS,
        progress=t / STEPS,
        lr=rate(t),
        lr_min=0.05,
        lr_max=LR,
        seed=SEED,
        training_set=TrainingSet(),
    )


def optimizer_of(name, parameters):
    """Method adam is the optimizer of its name; the others are tried with SGD with momentum and decay."""
    if name in ("adam", "adamw"):
        return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name](parameters, lr=LR, weight_decay=DECAY)
    return torch.optim.SGD(parameters, lr=LR, momentum=MOMENTUM, weight_decay=DECAY)


class HandOptimizer:
    """The same update rules on the flat vector, by hand."""

    def __init__(self, name):
        self.name, self.v, self.square, self.t = name, None, 0, 0

    def step(self, w, g, lr):
        self.t += 1
        if self.name == "adamw":
            w = w - lr * DECAY * w
        else:
            g = g + DECAY * w
        if self.name not in ("adam", "adamw"):
            self.v = g if self.v is None else MOMENTUM * self.v + g
            return w - lr * self.v
        self.v = 0.9 * (0 if self.v is None else self.v) + 0.1 * g
        self.square = 0.999 * self.square + 0.001 * g * g
        m, s = self.v / (1 - 0.9**self.t), self.square / (1 - 0.999**self.t)
        return w - lr * m / (s.sqrt() + 1e-8)


def test_every_method_has_a_reference():
    assert {name for name, _, _ in ORACLES.values()} == set(METHODS)


@pytest.mark.parametrize("decay", [0.0, 0.03], ids=["decay-outside", "decay-inside"])
@pytest.mark.parametrize("norm", ["batch", "layer"])
@pytest.mark.parametrize("key", ORACLES)
def test_three_steps(key, norm, decay):
    name, options, formula = ORACLES[key]
    net, by_hand = Net(norm, decay), HandOptimizer(name)
    reference = formula(net, options)
    next(reference)
    w = net.flat()

    model = network(norm)
    inside = [decay] * len(list(model.parameters())) if decay else None
    optimizer = optimizer_of(name, model.parameters())
    task = Task(model, nn.CrossEntropyLoss(reduction="none"), optimizer=optimizer, decay=inside)
    method = METHODS[name](**options)
    state = method.init(task, context(0))
    x, y = examples()
    for t in range(STEPS):
        rows = rows_of(t)
        optimizer.param_groups[0]["lr"] = rate(t)
        step = task.step((x[rows], y[rows]), context(t), indices=rows)
        method.gradient(step, state)
        gradient = torch.cat([p.grad.reshape(-1) for p in model.parameters()])
        optimizer.step()
        method.after_step(step, state)

        answer = reference.send(At(w, x[rows], y[rows], rows, t, rate(t), by_hand.v))
        net.move_statistics(answer[1], x[rows]) if norm == "batch" else None
        torch.testing.assert_close(gradient, answer[0], rtol=1e-8, atol=1e-12)
        w = by_hand.step(w, answer[0], rate(t))
        w = answer[2](w) if len(answer) > 2 else w
        weights = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
        torch.testing.assert_close(weights, w, rtol=1e-8, atol=1e-12)
        for n, buffer in model.named_buffers():
            torch.testing.assert_close(buffer, net.buffers[n], rtol=1e-8, atol=1e-12)
