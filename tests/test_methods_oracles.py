"""The first three steps of every method against a slow reference written from its formula (tests/method_oracles.py)."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from method_oracles import ORACLES
from oracle_network import BATCH, CLASSES, DECAY, EXAMPLES, LR, MOMENTUM, SEED, STEPS, At, Net, examples, network
from torch import nn

from landscape.problem.batches import Batch
from trainers import METHODS, Context, Task
from trainers.loop.base import base_optimizer
from trainers.loop.settings import BASES, Settings


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


def optimizer_of(name, model):
    """Method adam is the optimizer of its name; the others are tried with SGD with momentum and decay."""
    settings = Settings(base=name if name in BASES else "sgd", momentum=MOMENTUM)
    return base_optimizer(dataclasses.replace(settings, lr=LR, weight_decay=DECAY, decay_all=True), model)


class HandOptimizer:
    """The same update rules on the flat vector, by hand."""

    def __init__(self, name, net):
        self.name, self.net, self.v, self.square, self.t = name, net, None, 0, 0

    def step(self, w, g, lr):
        if self.name == "lion":
            m = torch.zeros_like(g) if self.v is None else self.v
            self.v = 0.99 * m + 0.01 * g
            return w - lr * ((0.9 * m + 0.1 * g).sign() + DECAY * w)
        if self.name == "muon":
            return self._muon(w, g, lr)
        if self.name not in ("adam", "adamw"):
            g = g + DECAY * w
            self.v = g if self.v is None else MOMENTUM * self.v + g
            return w - lr * self.v
        return self._adam(w, g, lr)

    def _adam(self, w, g, lr):
        self.t += 1
        if self.name == "adam":
            g = g + DECAY * w
        else:
            w = w - lr * DECAY * w
        self.v = 0.9 * (0 if self.v is None else self.v) + 0.1 * g
        self.square = 0.999 * self.square + 0.001 * g * g
        m, s = self.v / (1 - 0.9**self.t), self.square / (1 - 0.999**self.t)
        return w - lr * m / (s.sqrt() + 1e-8)

    def _muon(self, w, g, lr):
        """The hidden layer's weights by their singular values, everything else by AdamW."""
        hidden, shape = self.net.of("0.weight").bool(), self.net.shapes[0]
        self.m = 0.95 * getattr(self, "m", 0) + 0.05 * g[hidden]
        u, s, v = torch.linalg.svd((0.95 * self.m + 0.05 * g[hidden]).view(shape), full_matrices=False)
        s = s / s.norm()
        for _ in range(5):
            s = 3.4445 * s - 4.775 * s**3 + 2.0315 * s**5
        after = self._adam(w, g, lr)
        after[hidden] = (1 - lr * DECAY) * w[hidden] - 0.2 * lr * max(shape) ** 0.5 * (u * s @ v).reshape(-1)
        return after


def test_every_method_has_a_reference():
    assert {name for name, _, _ in ORACLES.values()} == set(METHODS)


# A bias in front of BatchNorm has a gradient of 0 but for rounding, and Lion takes the sign of it.
CASES = [(key, norm) for key in ORACLES for norm in ("batch", "layer") if (ORACLES[key][0], norm) != ("lion", "batch")]


@pytest.mark.parametrize("decay", [0.0, 0.03], ids=["decay-outside", "decay-inside"])
@pytest.mark.parametrize(("key", "norm"), CASES)
def test_three_steps(key, norm, decay):
    name, options, formula = ORACLES[key]
    net = Net(norm, decay)
    by_hand = HandOptimizer(name, net)
    reference = formula(net, options)
    next(reference)
    w = net.flat()

    model = network(norm)
    inside = [decay] * len(list(model.parameters())) if decay else None
    optimizer = optimizer_of(name, model)
    task = Task(model, nn.CrossEntropyLoss(reduction="none"), optimizer=optimizer, decay=inside)
    method = METHODS[name](**options)
    state = method.init(task, context(0))
    x, y = examples()
    for t in range(STEPS):
        rows = rows_of(t)
        for group in optimizer.param_groups:
            group["lr"] = rate(t)
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
