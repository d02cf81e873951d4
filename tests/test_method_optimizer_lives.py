"""Random lives of a MethodOptimizer, each step as by hand: layers come and go, states are kept, closures fail."""

from __future__ import annotations

import copy
import pickle
import random

import pytest
import torch
import torch.nn.functional as F
from own_loop_cases import batches, closure_of
from torch import nn

from trainers import METHODS, MethodOptimizer

OPTIONS = {
    "sam": {"rho": 0.3},
    "gnp": {"rho": 0.3, "alpha": 0.7},
    "wsam": {"rho": 0.3, "gamma": 0.7},
    "vasso": {"rho": 0.3, "theta": 0.4},
}
EVENTS = ("none", "freeze", "add", "replace", "deepcopy", "pickle", "state", "accumulate", "fail")


class Growing(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.middle = nn.Linear(6, 5), nn.ModuleList()
        self.last, self.unused = nn.Linear(5, 3), nn.Linear(2, 2)
        self.double()

    def forward(self, x):
        x = torch.tanh(self.first(x))
        for layer in self.middle:
            x = x + torch.tanh(layer(x))
        return self.last(x)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.05)


class Hand:
    """A network, and its steps by the papers' formulas; what is remembered of a parameter is dropped where it stops."""

    def __init__(self, model, name):
        self.model, self.name, self.base, self.mean = model, name, sgd(model.parameters()), None

    def gradient(self, batch):
        """What the base optimizer gets, what follows its step, and the mean that VaSSO remembers: by parameter."""
        weights = [p for p in self.model.parameters() if p.requires_grad]
        options, first = OPTIONS[self.name], self._backward(batch, weights)
        along, mean = first, None
        if self.name == "vasso":
            theta, old = options["theta"], self.mean or {}
            mean = {p: first.get(p, torch.zeros_like(p)) for p in weights}
            if self.mean is not None:
                mean = {p: (1 - theta) * old.get(p, torch.zeros_like(p)) + theta * g for p, g in mean.items()}
            along = mean
        length = torch.sqrt(sum((g**2).sum() for g in along.values()))
        start = {p: p.detach().clone() for p in weights}
        with torch.no_grad():
            for p, g in along.items():
                p += options["rho"] * g / length
        second = self._backward(batch, weights)
        with torch.no_grad():
            for p, before in start.items():
                p.copy_(before)
        if self.name == "gnp":
            return {p: 0.3 * first[p] + 0.7 * g for p, g in second.items()}, {}, mean
        if self.name == "wsam":
            return first, {p: g - first[p] for p, g in second.items()}, mean
        return second, {}, mean

    def step(self, data):
        """One step over micro-batches of equal weight."""
        each = [self.gradient(batch) for batch in data]
        descent, after, mean = (
            {p: sum(d[p] for d in ds) / len(data) for p in ds[0]} if ds[0] else {} for ds in zip(*each, strict=True)
        )
        self.base.zero_grad()
        for p, g in descent.items():
            p.grad = g
        self.base.step()
        rates = {p: group["lr"] for group in self.base.param_groups for p in group["params"]}
        with torch.no_grad():
            for p, g in after.items():
                p -= rates[p] * 0.7 / 0.3 * g
        self.mean = mean or None

    def _backward(self, batch, weights):
        loss = F.cross_entropy(self.model(batch[0]), batch[1])
        found = torch.autograd.grad(loss, weights, allow_unused=True)
        return {p: g for p, g in zip(weights, found, strict=True) if g is not None}


class Life:
    """A model with its MethodOptimizer, and the same by hand."""

    def __init__(self, seed):
        self.draw, name = random.Random(seed), list(OPTIONS)[seed % len(OPTIONS)]
        torch.manual_seed(seed)
        self.model = Growing()
        self.hand = Hand(copy.deepcopy(self.model), name)
        self.optimizer = self._adapted(self.model, sgd(self.model.parameters()))

    def live(self, event, data):
        change = getattr(self, f"_{event}", None)
        if change is not None:
            change()
        first = data[0]
        if event == "accumulate":
            for i, batch in enumerate(data):
                closure = closure_of(self.optimizer, self.model, *batch)
                self.optimizer.gradient(closure, share=1 / len(data), add=i > 0)
            self.optimizer.step()
            self.hand.step(data)
        else:
            self.optimizer.step(closure_of(self.optimizer, self.model, *first))
            self.hand.step([first])

    def distance(self):
        pairs = zip(self.model.parameters(), self.hand.model.parameters(), strict=True)
        return max(float((a - b).detach().abs().max()) for a, b in pairs)

    def _adapted(self, model, base):
        return MethodOptimizer(base, METHODS[self.hand.name](**OPTIONS[self.hand.name]), model)

    def _freeze(self):
        part, trained = self.draw.choice(["first", "middle"]), self.draw.random() < 0.5
        for model in (self.model, self.hand.model):
            getattr(model, part).requires_grad_(trained)

    def _add(self):
        layer = nn.Linear(5, 5).double()
        for model, optimizer in ((self.model, self.optimizer), (self.hand.model, self.hand.base)):
            model.middle.append(copy.deepcopy(layer))
            optimizer.add_param_group({"params": list(model.middle[-1].parameters()), "lr": 0.03})

    def _replace(self):
        layer = nn.Linear(5, 3).double()
        for model, optimizer in ((self.model, self.optimizer), (self.hand.model, self.hand.base)):
            model.last = copy.deepcopy(layer)
            optimizer.add_param_group({"params": list(model.last.parameters())})

    def _deepcopy(self):
        self.model, self.optimizer = copy.deepcopy((self.model, self.optimizer))

    def _pickle(self):
        self.model, self.optimizer = pickle.loads(pickle.dumps((self.model, self.optimizer)))

    def _state(self):
        kept, model, groups = (
            copy.deepcopy(self.optimizer.state_dict()),
            *copy.deepcopy((self.model, self.optimizer.param_groups)),
        )
        self.model, self.optimizer = model, self._adapted(model, sgd(groups))
        self.optimizer.load_state_dict(kept)

    def _fail(self):
        closure, at, calls = closure_of(self.optimizer, self.model, *batches(1)[0]), self.draw.choice([1, 2]), []

        def failing():
            loss = closure()
            calls.append(1)
            if len(calls) == at:
                raise MemoryError
            return loss

        with pytest.raises(MemoryError):
            self.optimizer.step(failing)


@pytest.mark.parametrize("seed", range(16))
def test_every_step_of_a_random_life_is_as_by_hand(seed):
    life, data = Life(seed), batches(8)
    events = []
    for _ in range(10):
        events.append(life.draw.choice(EVENTS))
        life.live(events[-1], life.draw.sample(data, 3))
        assert life.distance() < 1e-12, events
