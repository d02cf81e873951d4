"""Small problems of the invariance test."""

import torch
from torch import nn

import landscape
from trainers.models import build_model


def points(n, *shape, classes=2):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(n, *shape, generator=generator, dtype=torch.float64)
    return [(x, torch.randint(classes, (n,), generator=generator))]


def table_2(seed=0):
    model = build_model("table2-mlp", classes=2, input_shape=(2,), seed=seed).double()
    return landscape.Problem(model, nn.CrossEntropyLoss(), points(40, 2))
