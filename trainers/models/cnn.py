"""A small convolutional network, and the initialization that the convolutional families share."""

from __future__ import annotations

from torch import nn

from landscape.errors import InputError
from landscape.registry import register
from trainers.models import require_images


@register("small-cnn", small={"input_shape": (1, 8, 8), "channels": (4, 6, 5)})
def small_cnn(classes: int, input_shape: tuple[int, ...], *, channels: tuple[int, ...] = (16, 32, 64)) -> nn.Sequential:
    """Three 3x3 convolutions with BatchNorm and ReLU, mean over the pixels, one linear layer.

    The first convolution keeps the size, every other one halves it: trains on 8x8 digits in seconds, takes images of
    any size. Initialized as :func:`initialize_convolutions` says.

    Args:
        channels: output channels of the convolutions, written 16x32x64 on the command line.
    """
    require_images("small-cnn", input_shape, 1)
    if not channels or min(channels) < 1:
        raise InputError(f"channels={channels}: at least one convolution, each of at least one channel, is needed")
    layers: list[nn.Module] = []
    width = input_shape[0]
    for index, out in enumerate(channels):
        convolution = nn.Conv2d(width, out, 3, stride=1 if index == 0 else 2, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(out), nn.ReLU()]
        width = out
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))
    initialize_convolutions(model)
    return model


def initialize_convolutions(model: nn.Module) -> None:
    """Convolutions normal with variance 2 / fan out; BatchNorm 1 and 0; linear layers keep torch's +-1/sqrt(fan in).

    Source: He, Zhang, Ren, Sun 2015, arXiv 1502.01852, in the backward form that torchvision's networks use.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
