"""Losses that compute something else have another name; the same loss has the same one."""

import functools

import torch
from torch import nn
from torch.nn import functional as F

from landscape.problem.loss_name import loss_name


def plain(outputs, targets):
    return F.cross_entropy(outputs, targets)


def smoothed(outputs, targets, amount=0.1):
    return F.cross_entropy(outputs, targets, label_smoothing=amount)


def smoothing(amount):
    return lambda outputs, targets: F.cross_entropy(outputs, targets, label_smoothing=amount)


def losses():
    return [
        None,
        F.cross_entropy,
        F.nll_loss,
        plain,
        smoothed,
        smoothing(0.1),
        smoothing(0.2),
        functools.partial(smoothed, amount=0.3),
        functools.partial(smoothed, amount=0.4),
        nn.CrossEntropyLoss(),
        nn.CrossEntropyLoss(label_smoothing=0.1),
        nn.CrossEntropyLoss(reduction="none"),
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0])),
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0])),
    ]


def test_every_loss_has_its_own_name():
    names = [loss_name(loss) for loss in losses()]
    assert len(set(names)) == len(names)


def test_the_same_loss_has_the_same_name():
    assert [loss_name(loss) for loss in losses()] == [loss_name(loss) for loss in losses()]
    loss = nn.CrossEntropyLoss()
    assert loss_name(loss.eval()) == loss_name(nn.CrossEntropyLoss())
