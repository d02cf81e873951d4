"""Residual networks: He, Zhang, Ren, Sun 2015, arXiv 1512.03385.

The ImageNet family has the layout and the parameter names of torchvision's (stride in the 3x3 convolution of a
bottleneck, "v1.5"), so that its state dicts load. The CIFAR family is the paper's section 4.2.
"""

from __future__ import annotations

from torch import Tensor, nn

from landscape.errors import InputError, unknown
from landscape.registry import register
from trainers.models import require_images
from trainers.models.cnn import initialize_convolutions

LARGEST_CIFAR_SIDE = 64
"""Up to this side ``stem="auto"`` takes the CIFAR stem."""

PADDED = ("pad", "pad-centered")
"""Shortcuts of option A: new channels after the old ones, or half of them before (akamaster/pytorch_resnet_cifar10)."""


def convolution(width: int, out: int, size: int, stride: int = 1) -> nn.Conv2d:
    """Convolution without bias that keeps the image's size at stride 1."""
    return nn.Conv2d(width, out, size, stride=stride, padding=size // 2, bias=False)


class PaddedShortcut(nn.Module):
    """Option A of the paper: every `stride`-th pixel, new channels zero, `before` of them first."""

    def __init__(self, extra: int, stride: int, before: int = 0) -> None:
        super().__init__()
        self.stride = stride
        self.pad = nn.ConstantPad3d((0, 0, 0, 0, before, extra - before), 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, c + extra, h / stride, w / stride)."""
        return self.pad(x[:, :, :: self.stride, :: self.stride])


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, width: int, planes: int, stride: int, shortcut: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = convolution(width, planes, 3, stride)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu1 = nn.ReLU()
        self.conv2 = convolution(planes, planes, 3)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = shortcut
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """relu(shortcut(x) + residual(x))."""
        residual = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(residual + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution and a shortcut; the output has four times the inner width."""

    expansion = 4

    def __init__(self, width: int, planes: int, stride: int, shortcut: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = convolution(width, planes, 1)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu1 = nn.ReLU()
        self.conv2 = convolution(planes, planes, 3, stride)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu2 = nn.ReLU()
        self.conv3 = convolution(planes, planes * self.expansion, 1)
        self.bn3 = nn.BatchNorm2d(planes * self.expansion)
        self.downsample = shortcut
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """relu(shortcut(x) + residual(x))."""
        residual = self.relu2(self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x))))))
        residual = self.bn3(self.conv3(residual))
        return self.relu3(residual + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """Stem, stages of residual blocks, mean over the pixels, one linear layer.

    Initialized as :func:`trainers.models.cnn.initialize_convolutions` says.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        blocks: tuple[int, ...],
        planes: int,
        classes: int,
        channels: int,
        *,
        imagenet_stem: bool,
        shortcut: str = "projection",
        stride: int = 1,
    ) -> None:
        super().__init__()
        self.conv1 = (
            nn.Conv2d(channels, planes, 7, 2, 3, bias=False)
            if imagenet_stem
            else convolution(channels, planes, 3, stride)
        )
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1) if imagenet_stem else nn.Identity()
        self.stages = len(blocks)
        width = planes
        for stage, count in enumerate(blocks):
            out = planes * 2**stage
            layers = []
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                layers.append(block(width, out, stride, _shortcut(shortcut, width, out * block.expansion, stride)))
                width = out * block.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(width, classes)
        initialize_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, height, width) -> logits (n, classes)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in range(1, self.stages + 1):
            x = getattr(self, f"layer{stage}")(x)
        return self.fc(self.flatten(self.avgpool(x)))


def _shortcut(kind: str, width: int, out: int, stride: int) -> nn.Module | None:
    if stride == 1 and width == out:
        return None
    if kind in PADDED:
        return PaddedShortcut(out - width, stride, (out - width) // 2 if kind == "pad-centered" else 0)
    return nn.Sequential(convolution(width, out, 1, stride), nn.BatchNorm2d(out))


@register(
    "resnet",
    small={"input_shape": (1, 8, 8), "width": 4},
    same_weights={"shortcut": ("pad", "pad-centered"), "stride": (1, 2)},
)
def resnet(
    classes: int,
    input_shape: tuple[int, ...],
    *,
    depth: int = 8,
    width: int = 16,
    stride: int = 1,
    shortcut: str = "projection",
) -> ResNet:
    """CIFAR ResNet of any depth and width: three stages of `width`, 2 `width` and 4 `width` channels.

    Args:
        depth: number of layers, 6 n + 2.
        width: channels of the first stage.
        stride: of the first convolution; 2 makes every layer four times cheaper.
        shortcut: projection (1x1 convolution, option B), pad (zero channels after, option A as in the paper's section
            4.2) or pad-centered (half of them before, as akamaster/pytorch_resnet_cifar10).
    """
    if depth < 8 or (depth - 2) % 6:
        raise InputError(f"depth={depth} of resnet is not 6 n + 2: use 8, 14, 20, 32, 44 or 56")
    if width < 1:
        raise InputError(f"width={width} of resnet: at least 1 channel is needed")
    if stride < 1:
        raise InputError(f"stride={stride} of resnet: 1 keeps the image's size, 2 halves its sides")
    return _cifar("resnet", depth, classes, input_shape, shortcut, width, stride)


def _cifar(
    name: str,
    depth: int,
    classes: int,
    input_shape: tuple[int, ...],
    shortcut: str,
    width: int = 16,
    stride: int = 1,
) -> ResNet:
    require_images(name, input_shape, 1)
    if shortcut not in ("projection", *PADDED):
        raise unknown("shortcut", shortcut, ("projection", *PADDED))
    blocks, channels = ((depth - 2) // 6,) * 3, input_shape[0]
    return ResNet(BasicBlock, blocks, width, classes, channels, imagenet_stem=False, shortcut=shortcut, stride=stride)


@register("resnet20", small={"input_shape": (1, 8, 8)}, same_weights={"shortcut": ("pad", "pad-centered")})
def resnet20(classes: int, input_shape: tuple[int, ...], *, shortcut: str = "projection") -> ResNet:
    """CIFAR ResNet-20: three stages of 16, 32 and 64 channels; 272,474 parameters on CIFAR-10.

    Args:
        shortcut: projection (1x1 convolution, option B), pad (zero channels after, option A as in the paper's section
            4.2; 269,722 parameters) or pad-centered (half of them before, as akamaster/pytorch_resnet_cifar10).
    """
    return _cifar("resnet20", 20, classes, input_shape, shortcut)


@register("resnet56", small={"input_shape": (3, 8, 8)}, same_weights={"shortcut": ("pad", "pad-centered")})
def resnet56(classes: int, input_shape: tuple[int, ...], *, shortcut: str = "projection") -> ResNet:
    """CIFAR ResNet-56: three stages of 16, 32 and 64 channels; 855,770 parameters on CIFAR-10.

    Args:
        shortcut: projection (1x1 convolution, option B), pad (zero channels after, option A as in the paper's section
            4.2; 853,018 parameters) or pad-centered (half of them before, as akamaster/pytorch_resnet_cifar10).
    """
    return _cifar("resnet56", 56, classes, input_shape, shortcut)


def _imagenet(
    name: str,
    block: type[BasicBlock] | type[Bottleneck],
    blocks: tuple[int, ...],
    classes: int,
    shape: tuple[int, ...],
    stem: str,
) -> ResNet:
    require_images(name, shape, 1)
    if stem not in ("auto", "cifar", "imagenet"):
        raise unknown("stem", stem, ("auto", "cifar", "imagenet"))
    large = stem == "imagenet" or (stem == "auto" and min(shape[1:]) > LARGEST_CIFAR_SIDE)
    if large and min(shape[1:]) < 32:
        raise InputError(f"the imagenet stem of {name} divides sides by 32, the image is {shape}: use stem=cifar")
    return ResNet(block, blocks, 64, classes, shape[0], imagenet_stem=large)


@register("resnet18", small={"input_shape": (3, 8, 8)})
def resnet18(classes: int, input_shape: tuple[int, ...], *, stem: str = "auto") -> ResNet:
    """ResNet-18: 11,689,512 parameters on ImageNet.

    Args:
        stem: imagenet (7x7 convolution, pooling), cifar (3x3 convolution, no pooling) or auto (cifar up to 64 pixels).
    """
    return _imagenet("resnet18", BasicBlock, (2, 2, 2, 2), classes, input_shape, stem)


@register("resnet50", small={"input_shape": (3, 8, 8)})
def resnet50(classes: int, input_shape: tuple[int, ...], *, stem: str = "auto") -> ResNet:
    """ResNet-50: 25,557,032 parameters on ImageNet.

    Args:
        stem: imagenet (7x7 convolution, pooling), cifar (3x3 convolution, no pooling) or auto (cifar up to 64 pixels).
    """
    return _imagenet("resnet50", Bottleneck, (3, 4, 6, 3), classes, input_shape, stem)


@register("resnet101", small={"input_shape": (3, 8, 8)})
def resnet101(classes: int, input_shape: tuple[int, ...], *, stem: str = "auto") -> ResNet:
    """ResNet-101: 44,549,160 parameters on ImageNet.

    Args:
        stem: imagenet (7x7 convolution, pooling), cifar (3x3 convolution, no pooling) or auto (cifar up to 64 pixels).
    """
    return _imagenet("resnet101", Bottleneck, (3, 4, 23, 3), classes, input_shape, stem)


@register("resnet152", small={"input_shape": (3, 8, 8)})
def resnet152(classes: int, input_shape: tuple[int, ...], *, stem: str = "auto") -> ResNet:
    """ResNet-152: 60,192,808 parameters on ImageNet.

    Args:
        stem: imagenet (7x7 convolution, pooling), cifar (3x3 convolution, no pooling) or auto (cifar up to 64 pixels).
    """
    return _imagenet("resnet152", Bottleneck, (3, 8, 36, 3), classes, input_shape, stem)
