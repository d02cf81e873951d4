"""A network, batches and closures that tests of loops of your own share."""

from __future__ import annotations

import copy
import warnings

import torch
import torch.nn.functional as F
from torch import nn

from trainers import METHODS, MethodOptimizer

BATCH_METHODS = {"esam", "functional-sam", "k-sam", "mesa", "saf", "ssam", "subset-sam", "xsam"}
CLOSURE_METHODS = sorted({*METHODS} - BATCH_METHODS)
RHO, RATE = 0.5, 0.1


def network(dtype=torch.float64, dropout=0.0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        layers = [nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 3)]
        return nn.Sequential(*layers).to(dtype)


def batches(count=6, size=12, dtype=torch.float64):
    generator = torch.Generator().manual_seed(9)
    x = torch.randn(count, size, 6, generator=generator, dtype=torch.float64).to(dtype)
    y = torch.randint(3, (count, size), generator=generator)
    return list(zip(x, y, strict=True))


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)


def closure_of(optimizer, model, inputs, targets):
    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), targets)
        loss.backward()
        return loss

    return closure


def assert_equal_models(a, b, **tolerances):
    torch.testing.assert_close(a.state_dict(), dict(b.state_dict()), **tolerances)


def adapted(model, name="sam", rate=RATE, **options):
    base = torch.optim.SGD(model.parameters(), lr=rate)
    return MethodOptimizer(base, METHODS[name](**options), model, total_steps=6)


def steps(optimizer, model, data):
    for batch in data:
        optimizer.step(closure_of(optimizer, model, *batch))


def gradient(model, batch):
    return torch.autograd.grad(F.cross_entropy(model(batch[0]), batch[1]), list(model.parameters()))


def both_gradients(model, batch, rho=RHO):
    """At w and at w + rho g / ||g||, by hand."""
    twin = copy.deepcopy(model)
    first = gradient(twin, batch)
    norm = torch.sqrt(sum((g**2).sum() for g in first))
    with torch.no_grad():
        for w, g in zip(twin.parameters(), first, strict=True):
            w += rho * g / norm
    return first, gradient(twin, batch)


def moved(model, gradients, rate=RATE):
    with torch.no_grad():
        for w, g in zip(model.parameters(), gradients, strict=True):
            w -= rate * g


def plain():
    """Without BatchNorm, whose statistics nobody follows here by hand."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def lightning_fit(lightning, module, loader, folder, **options):
    """Fit a LightningModule on the CPU, in silence and without files of Lightning's own."""
    trainer = lightning.Trainer(
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **options,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, torch.utils.data.DataLoader(loader, batch_size=None))
