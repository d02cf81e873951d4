"""A small network and its data that tests of surfaces share."""

import torch
from torch import nn

from landscape import Problem


def data(n=300, width=8):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, width, generator=generator), torch.randint(0, 3, (n,), generator=generator)


def mlp(loss=None, n=300, dtype=torch.float32, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)).to(dtype)
    inputs, labels = data(n)
    batches = list(zip(inputs.to(dtype).split(50), labels.split(50), strict=True))
    return Problem(model, loss or nn.CrossEntropyLoss(), batches, **options)
