"""The network and the examples of the methods' references: losses and gradients as functions of one flat vector."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

EXAMPLES, BATCH, CLASSES = 24, 8, 3
STEPS = 3
LR, MOMENTUM, DECAY = 0.2, 0.9, 0.02
SEED = 11


def network(norm):
    """Linear, BatchNorm or LayerNorm, tanh, linear: float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        layer = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}[norm](6)
        model = nn.Sequential(nn.Linear(5, 6), layer, nn.Tanh(), nn.Linear(6, CLASSES)).double()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.3 * torch.randn_like(p))
    return model


def examples():
    """Inputs (n, 5) and labels (n,)."""
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(EXAMPLES, 5, generator=generator, dtype=torch.float64)
    return x, torch.randint(CLASSES, (EXAMPLES,), generator=generator)


@dataclass
class At:
    """A step: its weights (flat), batch, indices, and where training stands."""

    w: torch.Tensor
    x: torch.Tensor
    y: torch.Tensor
    rows: torch.Tensor
    t: int
    lr: float
    v: torch.Tensor | None


class Net:
    """Losses and gradients of a network as functions of the flat vector w."""

    def __init__(self, norm, decay=0.0):
        self.model = network(norm)
        self.names = [n for n, _ in self.model.named_parameters()]
        self.shapes = [p.shape for p in self.model.parameters()]
        self.sizes = [s.numel() for s in self.shapes]
        self.decay = decay
        self.buffers = {n: b.clone() for n, b in self.model.named_buffers()}
        self.task = None

    def flat(self):
        return torch.cat([p.detach().reshape(-1) for p in self.model.parameters()])

    def named(self, w):
        return {n: p.view(s) for n, p, s in zip(self.names, w.split(self.sizes), self.shapes, strict=True)}

    def logits(self, w, x, training=True, buffers=None):
        twin = copy.deepcopy(self.model).train(training)
        kept = {n: b.clone() for n, b in (self.buffers if buffers is None else buffers).items()}
        return torch.func.functional_call(twin, {**self.named(w), **kept}, (x,))

    def losses(self, w, x, y):
        logp = torch.log_softmax(self.logits(w, x), 1)
        return -logp[torch.arange(len(y)), y]

    def gradient(self, w, x, y, extra=None):
        w = w.clone().requires_grad_()
        loss = self.losses(w, x, y).sum() / len(y)
        if extra is not None:
            loss = loss + extra(self.logits(w, x)).sum() / len(y)
        return torch.autograd.grad(loss + self.decay / 2 * (w * w).sum(), w)[0]

    def move_statistics(self, w, x):
        """What one pass over x at w makes of the running statistics."""
        for n in [n for n in self.buffers if n.endswith("running_mean")]:
            prefix = n.removesuffix("running_mean")
            h = F.linear(x, self.named(w)["0.weight"], self.named(w)["0.bias"])
            self.buffers[n] = 0.9 * self.buffers[n] + 0.1 * h.mean(0)
            variance = h.var(0, unbiased=True)
            self.buffers[prefix + "running_var"] = 0.9 * self.buffers[prefix + "running_var"] + 0.1 * variance
            self.buffers[prefix + "num_batches_tracked"] = self.buffers[prefix + "num_batches_tracked"] + 1

    def of(self, *names):
        """Ones at the entries of these parameters."""
        return torch.cat(
            [torch.full((n,), float(name in names)) for name, n in zip(self.names, self.sizes, strict=True)]
        )
