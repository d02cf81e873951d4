"""A tiny task that tests of methods share, with a loss that records where and on what it was called."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from oracle_network import CLASSES, EXAMPLES, examples, network

from landscape.problem.batches import Batch
from trainers import METHODS, Context, Task

SEED = 5


class TrainingSet:
    """All examples, by index."""

    examples, classes = EXAMPLES, CLASSES

    def batch(self, indices):
        x, y = examples()
        return Batch((x[indices],), {}, y[indices], len(indices))


class Recorder:
    """Cross-entropy by example; keeps the flat weights and the batch size of every call."""

    def __init__(self):
        self.model, self.weights, self.sizes, self.values = None, [], [], []

    def __call__(self, outputs, targets):
        self.weights.append(flat(self.model))
        self.sizes.append(len(targets))
        value = F.cross_entropy(outputs, targets, reduction="none")
        self.values.append(value.detach())
        return value


def flat(model):
    """Weights as one vector."""
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def context(t, *, epoch=None, progress=None, lr=0.2, steps=10, seed=SEED, **more):
    """Step t of `steps`; an epoch has two steps."""
    return Context(
        epoch=t // 2 if epoch is None else epoch,
        step=t,
        total_steps=steps,
        steps_per_epoch=2,
        progress=min(1.0, t / steps) if progress is None else progress,
        lr=lr,
        lr_min=0.0,
        lr_max=0.2,
        seed=seed,
        training_set=TrainingSet(),
        **more,
    )


class Run:
    """A method on the tiny network: `step()` makes one step on 8 (or given) rows."""

    def __init__(self, name, *, norm="batch", model=None, momentum=0.9, loss=None, group_size=None, **options):
        self.model = network(norm) if model is None else model
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.2, momentum=momentum)
        self.loss = Recorder() if loss is None else loss
        self.loss.model = self.model
        self.task = Task(self.model, self.loss, optimizer=self.optimizer, group_size=group_size)
        self.method = METHODS[name](**options)
        self.state = self.method.init(self.task, context(0))
        self.t = 0

    def step(self, rows=None, where=None):
        """One step; returns the gradient that was left, flat. `self.calls` are the weights of its passes."""
        rows = torch.arange(8) + 8 * (self.t % 2) if rows is None else torch.as_tensor(rows)
        where = context(self.t) if where is None else where
        if isinstance(self.loss, Recorder):
            self.loss.weights.clear(), self.loss.sizes.clear(), self.loss.values.clear()
        x, y = examples()
        self.start = flat(self.model)
        made = self.task.step((x[rows], y[rows]), where, indices=rows)
        self.reported = self.method.gradient(made, self.state)
        assert torch.equal(flat(self.model), self.start), "the weights must be restored to the last bit"
        gradient = torch.cat([p.grad.reshape(-1) for p in self.model.parameters()])
        self.optimizer.step()
        self.method.after_step(made, self.state)
        self.t += 1
        return gradient

    @property
    def epsilon(self):
        """Perturbations of the passes of the last step."""
        return [w - self.start for w in self.loss.weights]
