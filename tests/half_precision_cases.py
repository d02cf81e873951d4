"""Small trained networks in bfloat16 and float16, by their weights or by autocast, beside the same one in float64."""

import contextlib
import copy

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from transformer_cases import GPT

import landscape

KINDS = {
    "bfloat16 weights": (torch.bfloat16, False),
    "float16 weights": (torch.float16, False),
    "bfloat16 autocast": (torch.bfloat16, True),
    "float16 autocast": (torch.float16, True),
}


def _mlp():
    return nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 10))


def _cnn():
    first = (nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
    second = (nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(2))
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(64, 10))


def _gpt():
    return GPT(width=16, heads=2, words=32, length=12)


def _digits():
    digits = load_digits()
    return torch.tensor(digits.images[:256], dtype=torch.float32).flatten(1) / 16, torch.tensor(digits.target[:256])


def _walks():
    """Tokens that advance by a constant step, one in ten replaced by a random one."""
    g = torch.Generator().manual_seed(0)
    first, step = torch.randint(0, 32, (128, 1), generator=g), torch.randint(1, 5, (128, 1), generator=g)
    noise = (torch.rand(128, 13, generator=g) < 0.1) * torch.randint(0, 32, (128, 13), generator=g)
    tokens = (first + step * torch.arange(13) + noise) % 32
    return tokens[:, :-1], tokens[:, 1:]


NETWORKS = {"mlp": (_mlp, _digits), "cnn": (_cnn, _digits), "gpt": (_gpt, _walks)}


def trained(name, seed=0, steps=60):
    """A network in float32 after some steps, and its examples."""
    make, data = NETWORKS[name]
    x, y = data()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make()
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(steps):
            rows = torch.randint(0, len(x), (64,))
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    return model.eval(), x, y


def pair(name, kind, seed=0, batch=48):
    """Problem in half precision, and the same function of the same weights in float64."""
    model, x, y = trained(name, seed)
    dtype, autocast = KINDS[kind]
    if not autocast:
        model = model.to(dtype)
        x = x.to(dtype) if x.is_floating_point() else x
    exact = copy.deepcopy(model).double()
    batches = list(zip(x.split(batch), y.split(batch), strict=True))
    wide = [(a.double() if a.is_floating_point() else a, b) for a, b in batches]
    with torch.autocast("cpu", dtype) if autocast else contextlib.nullcontext():
        low = landscape.Problem(model, nn.CrossEntropyLoss(), batches)
    return low, landscape.Problem(exact, nn.CrossEntropyLoss(), wide)
