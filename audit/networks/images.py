"""Convolutions with norms: statistics of each batch, running ones, none, of groups."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from audit.networks.network import CLASSES, Fields, Network, features


def _images(channels: int, size: int) -> Callable[[int], Fields]:
    return lambda n: {"x": torch.randn(n, channels, size, size)}


def _moved(model: nn.Module, draw: Callable[[int], Fields]) -> nn.Module:
    """Running statistics moved away from 0 and 1."""
    with torch.no_grad():
        for _ in range(3):
            model.train()(1.5 * draw(8)["x"] + 0.3)
    return model


def cnn_batch_norm() -> Network:
    draw = _images(1, 4)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, CLASSES))
    return Network(_moved(model, draw), draw)


def batch_norm_features() -> Network:
    draw = features(3)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, CLASSES), nn.BatchNorm1d(3))
    return Network(_moved(model, draw), draw)


def batch_norm_cumulative() -> Network:
    """momentum=None, without scale and shift."""
    draw = features(3)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=None, affine=False), nn.SiLU(), nn.Linear(4, 3))
    return Network(_moved(model, draw), draw)


def batch_norm_without_statistics() -> Network:
    draw = features(3)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Tanh(), nn.Linear(4, 3))
    return Network(model, draw, coupled=True)


def cnn_group_norm() -> Network:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.GroupNorm(2, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    model.append(nn.Linear(4, CLASSES))
    return Network(model, _images(1, 4))


def instance_norm() -> Network:
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.InstanceNorm2d(2, affine=True), nn.ELU(), nn.Flatten())
    model.append(nn.Linear(18, CLASSES))
    return Network(model, _images(1, 4))


def max_pool() -> Network:
    model = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1, groups=1), nn.LeakyReLU(0.1), nn.MaxPool2d(2), nn.Flatten())
    model.append(nn.Linear(12, CLASSES))
    return Network(model, _images(1, 4))


def segmentation() -> Network:
    """A class for every pixel: (n, 3, 3, 3), labels (n, 3, 3)."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Tanh(), nn.Conv2d(2, CLASSES, 1))
    return Network(model, _images(1, 3), outputs="places")


def transposed() -> Network:
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.SiLU(), nn.ConvTranspose2d(2, 1, 2), nn.Flatten())
    return Network(model, _images(1, 3), outputs="values")


class PerExampleScale(nn.Module):
    """Squeeze and excite."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.gate, self.out = nn.Conv1d(2, 3, 2), nn.Linear(3, 3), nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.inner(x))
        return self.out((x * torch.sigmoid(self.gate(x.mean(-1))).unsqueeze(-1)).amax(-1))


def squeeze() -> Network:
    return Network(PerExampleScale(), lambda n: {"x": torch.randn(n, 2, 5)})


KINDS = {
    f.__name__: f
    for f in (
        *(cnn_batch_norm, batch_norm_features, batch_norm_cumulative, batch_norm_without_statistics, cnn_group_norm),
        *(instance_norm, max_pool, segmentation, transposed, squeeze),
    )
}
