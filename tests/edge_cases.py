"""Quadratics in closed form, and optimizers with states, for the measures of the edge of stability."""

import copy

import torch
from torch import nn

import landscape


class Quadratic(nn.Module):
    """L(w) = 1/2 w'Aw - b'w over a vector, a matrix and a bias that hold w: its output is the loss."""

    def __init__(self, a, b, w):
        super().__init__()
        self.register_buffer("a", a)
        self.register_buffer("b", b)
        self.matrix = nn.Parameter(w[:-2].reshape(2, -1).clone())
        self.bias = nn.Parameter(w[-2:].clone())

    def forward(self, x):
        w = torch.cat([self.matrix.reshape(-1), self.bias])
        return (0.5 * w @ self.a @ w - self.b @ w) * x.new_ones(len(x))


def quadratic(seed=0, size=8, indefinite=False):
    """Model, Problem, A and the gradient at w."""
    g = torch.Generator().manual_seed(seed)
    root = torch.randn(size, size, generator=g, dtype=torch.float64)
    a = root @ root.T / size + 0.1 * torch.eye(size, dtype=torch.float64)
    if indefinite:
        a -= torch.eye(size, dtype=torch.float64)
    b, w = (torch.randn(size, generator=g, dtype=torch.float64) for _ in range(2))
    model = Quadratic(a, b, w)
    problem = landscape.Problem(model, lambda outputs, targets: outputs, [(torch.zeros(3, 1), torch.zeros(3))])
    return model, problem, a, a @ w - b


def network(dtype=torch.float64, seed=0):
    """A small network with tied weights, and batches of unequal size."""

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
            self.second.weight = self.first.weight
            self.drop = nn.Dropout(0.5)

        def forward(self, x):
            return self.last(torch.tanh(self.second(self.drop(torch.tanh(self.first(x))))))

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Tied().to(dtype).eval()
        x, y = torch.randn(24, 4, dtype=dtype), torch.randint(0, 3, (24,))
    return model, list(zip(x.split(10), y.split(10), strict=True))


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, dampening=0.1, weight_decay=0.02),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.01),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True, weight_decay=0.01),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01, lr_decay=0.1),
}


def trained(model, batches, make, steps=3):
    """The optimizer after a few steps on the batches, in evaluation mode."""
    optimizer = make([p for p in model.parameters() if p.requires_grad])
    model.eval()
    for i in range(steps):
        x, y = batches[i % len(batches)]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    return optimizer


def really_stepped(model, optimizer, batches, gradient=None):
    """The flat weights before and after a step of deep copies, with the gradient of the mean over all examples."""
    pair = copy.deepcopy((model, optimizer))
    model, optimizer = pair
    x, y = (torch.cat(part) for part in zip(*batches, strict=True))
    parameters = [p for p in model.parameters() if p.requires_grad]
    before = torch.cat([p.detach().reshape(-1) for p in parameters]).clone()
    optimizer.zero_grad()
    nn.functional.cross_entropy(model.eval()(x), y).backward()
    optimizer.step()
    return before, torch.cat([p.detach().reshape(-1) for p in parameters])
