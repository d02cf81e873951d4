"""Trainings that tests of the Monitor watch: what they leave behind, whether anybody watched or not."""

from __future__ import annotations

import copy
import random

import numpy as np
import torch
import torch.nn.functional as F
from own_loop_cases import batches, network, sgd
from torch.utils.data import DataLoader, TensorDataset

import landscape

CHEAP = ("gradient_norm", "sharpness")


def loader(shuffle=False):
    """Reading it draws from torch's global stream, also without shuffling."""
    x, y = (torch.cat(part) for part in zip(*batches(3), strict=True))
    return DataLoader(TensorDataset(x, y), batch_size=12, shuffle=shuffle)


def problem_of(model, data=None, **options):
    return landscape.Problem(model, F.cross_entropy, batches(2) if data is None else data, **options)


def streams():
    return torch.get_rng_state(), random.getstate(), np.random.get_state()[1]  # noqa: NPY002


def snapshot(model, optimizer=None):
    """Everything of a network in training, copied."""
    return copy.deepcopy(
        {
            "state": dict(model.state_dict()),
            "gradients": [p.grad for p in model.parameters()],
            "flags": [m.training for m in model.modules()],
            "trainable": [p.requires_grad for p in model.parameters()],
            "optimizer": None if optimizer is None else optimizer.state_dict(),
            "streams": streams(),
        }
    )


def assert_same(first, second):
    """Bit for bit, whatever is nested in it."""
    assert type(first) is type(second)
    if isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype
        assert torch.equal(first, second)
    elif isinstance(first, np.ndarray):
        np.testing.assert_array_equal(first, second)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, list | tuple):
        assert len(first) == len(second)
        for a, b in zip(first, second, strict=True):
            assert_same(a, b)
    else:
        assert first == second


def plain(model, steps=6, *, watch=None, optimizer=None):
    """A loop as people write it, with dropout and draws of NumPy and Python; `watch(step)` looks at every step."""
    optimizer = sgd(model) if optimizer is None else optimizer
    torch.manual_seed(3)
    random.seed(4)
    np.random.seed(5)  # noqa: NPY002
    model.train()
    kept = []
    for step, (x, y) in enumerate((batches() * 4)[:steps]):
        if watch is not None:
            watch(step)
        optimizer.zero_grad()
        noise = random.random() + np.random.rand() + torch.randn(x.shape, dtype=x.dtype)  # noqa: NPY002
        F.cross_entropy(model(x + 0.1 * noise), y).backward()
        optimizer.step()
        kept.append(snapshot(model, optimizer))
    return kept


def dropped(dtype=torch.float64):
    """A network with BatchNorm and dropout, one tensor of which is frozen."""
    model = network(dtype, dropout=0.5)
    model[0].bias.requires_grad_(False)
    return model
