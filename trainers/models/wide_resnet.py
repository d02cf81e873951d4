"""Wide residual networks: Zagoruyko, Komodakis 2016, arXiv 1605.07146."""

from __future__ import annotations

from torch import Tensor, nn

from landscape.errors import InputError
from landscape.registry import register
from trainers.models import require_images
from trainers.models.cnn import initialize_convolutions
from trainers.models.resnet import convolution


class PreactivationBlock(nn.Module):
    """BatchNorm, ReLU, 3x3 convolution, twice; where the width changes the shortcut is a 1x1 convolution.

    That 1x1 convolution reads the activated input, as in the authors' code.
    """

    def __init__(self, width: int, out: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv1 = convolution(width, out, 3, stride)
        self.bn2 = nn.BatchNorm2d(out)
        self.relu2 = nn.ReLU()
        self.dropout = nn.Dropout(dropout) if dropout > 0 else nn.Identity()
        self.conv2 = convolution(out, out, 3)
        self.shortcut = None if stride == 1 and width == out else convolution(width, out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Shortcut + residual(x)."""
        active = self.relu1(self.bn1(x))
        residual = self.conv2(self.dropout(self.relu2(self.bn2(self.conv1(active)))))
        return residual + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(nn.Module):
    """3x3 convolution to 16 channels, three groups of 16, 32 and 64 times `width` channels, linear layer.

    Initialized as :func:`trainers.models.cnn.initialize_convolutions` says.
    """

    def __init__(self, depth: int, width: int, dropout: float, classes: int, channels: int) -> None:
        super().__init__()
        self.conv1 = convolution(channels, 16, 3)
        current = 16
        groups = []
        for group, out in enumerate((16 * width, 32 * width, 64 * width)):
            blocks = []
            for index in range((depth - 4) // 6):
                blocks.append(PreactivationBlock(current, out, 2 if group > 0 and index == 0 else 1, dropout))
                current = out
            groups.append(nn.Sequential(*blocks))
        self.groups = nn.Sequential(*groups)
        self.bn = nn.BatchNorm2d(current)
        self.relu = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(current, classes)
        initialize_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, height, width) -> logits (n, classes)."""
        return self.fc(self.flatten(self.avgpool(self.relu(self.bn(self.groups(self.conv1(x)))))))


@register("wrn", small={"input_shape": (3, 8, 8), "depth": 10, "width": 1})
def wrn(
    classes: int, input_shape: tuple[int, ...], *, depth: int = 16, width: int = 4, dropout: float = 0.0
) -> WideResNet:
    """Wide ResNet of any depth and width.

    Args:
        depth: number of layers, 6 n + 4.
        width: factor on the channels.
        dropout: probability of zeroing an activation between the two convolutions of a block.
    """
    require_images("wrn", input_shape, 1)
    if depth < 10 or (depth - 4) % 6:
        raise InputError(f"depth={depth} of wrn is not 6 n + 4: use 10, 16, 22, 28, 34 or 40")
    if width < 1 or not 0 <= dropout < 1:
        raise InputError(f"width={width}, dropout={dropout} of wrn: width >= 1 and 0 <= dropout < 1 are needed")
    return WideResNet(depth, width, dropout, classes, input_shape[0])


@register("wrn-28-10", small={"input_shape": (3, 8, 8)})
def wrn_28_10(classes: int, input_shape: tuple[int, ...], *, dropout: float = 0.0) -> WideResNet:
    """Wide ResNet of depth 28 and width 10: 36,479,194 parameters on CIFAR-10.

    Args:
        dropout: probability of zeroing an activation between the two convolutions of a block.
    """
    return wrn(classes, input_shape, depth=28, width=10, dropout=dropout)
