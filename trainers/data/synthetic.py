"""Drawn data: random images for speed work, many classes for the limits of top-K selection."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from landscape.errors import InputError
from landscape.random import stream
from landscape.registry import register
from trainers.data import Arrays, Source

OFFSETS = 1 << 22


@dataclass(frozen=True, eq=False)
class NoiseImages:
    """Images of uniform bytes that take the memory of one: image i is a window on a shared row of noise.

    Indexing with a tensor of indices gives uint8 images (n, channels, height, width) on the device; windows start at
    seeded offsets and may overlap. The noise is drawn when first needed.
    """

    seed: int
    stream: str
    count: int
    image: tuple[int, ...]
    device_name: str = "cpu"
    dtype = torch.uint8
    nbytes = 0

    @property
    def device(self) -> torch.device:
        """Where indexing gives its images."""
        return torch.device(self.device_name)

    @property
    def shape(self) -> tuple[int, ...]:
        """(count, channels, height, width)."""
        return (self.count, *self.image)

    def __len__(self) -> int:
        return self.count

    @functools.cached_property
    def _windows(self) -> tuple[Tensor, Tensor]:
        generator = stream(self.seed, self.stream)
        noise = torch.randint(256, (OFFSETS + prod(self.image),), generator=generator, dtype=torch.uint8)
        offsets = torch.randint(OFFSETS, (self.count,), generator=generator)
        return noise.to(self.device_name).unfold(0, prod(self.image), 1), offsets.to(self.device_name)

    def __getitem__(self, indices: Tensor | slice) -> Tensor:
        windows, offsets = self._windows
        return windows[offsets[indices]].unflatten(1, self.image)

    def to(self, device: torch.device | str) -> NoiseImages:
        """The same images on another device."""
        return NoiseImages(self.seed, self.stream, self.count, self.image, str(device))


@register("random-images", small={"shape": (3, 8, 8), "classes": 5, "n": 400, "n_test": 50})
def random_images(
    source: Source, *, shape: tuple[int, ...] = (3, 224, 224), classes: int = 1000, n: int = 10000, n_test: int = 1000
) -> Arrays:
    """Synthetic images of uniform noise with random labels, of any shape: for speed work, nothing to be learned.

    Args:
        shape: channels, height and width of an image, written 3x224x224 on the command line.
        classes: number of classes.
        n: number of training images.
        n_test: number of test images.
    """
    if len(shape) != 3 or min(shape) < 1 or classes < 2 or min(n, n_test) < 1:
        raise InputError(
            f"random-images with shape={shape}, classes={classes}, n={n}, n_test={n_test}: three positive sizes, two "
            "classes and one image each are needed"
        )
    labels = [
        torch.randint(classes, (count,), generator=stream(source.seed, f"random-images-labels-{part}"))
        for part, count in (("train", n), ("test", n_test))
    ]
    images = [
        NoiseImages(source.seed, f"random-images-{part}", count, shape)
        for part, count in (("train", n), ("test", n_test))
    ]
    moments = 127.5 / 255, ((256**2 - 1) / 12) ** 0.5 / 255
    return Arrays(images[0], labels[0], images[1], labels[1], classes, moments=moments)


@register("many-classes", small={"classes": 20, "n": 500, "n_test": 100})
def many_classes(
    source: Source,
    *,
    classes: int = 200,
    n: int = 10000,
    n_test: int = 4000,
    features: int = 64,
    separation: float = 4.0,
) -> Arrays:
    """Synthetic features of 200 or more Gaussian classes, balanced: the counter-example to selecting the top-K losses.

    Class centers are uniform on a sphere of radius `separation` in `features` dimensions, examples are normal around
    them with unit covariance. Two centers are about 1.41 `separation` apart.

    Args:
        classes: number of classes.
        n: number of training examples, at least one per class.
        n_test: number of test examples, at least one per class.
        features: number of features.
        separation: distance of the class centers from the origin, in standard deviations of an example.
    """
    if classes < 2 or min(n, n_test) < classes or features < 2 or separation < 0:
        raise InputError(
            f"many-classes with classes={classes}, n={n}, n_test={n_test}, features={features}, "
            f"separation={separation}: at least two classes, an example per class and two features are needed"
        )
    centers = torch.randn(classes, features, generator=stream(source.seed, "many-classes-centers"))
    centers *= separation / torch.linalg.vector_norm(centers, dim=1, keepdim=True)

    def around_centers(part: str, count: int) -> tuple[Tensor, Tensor]:
        generator = stream(source.seed, f"many-classes-{part}")
        y = (torch.arange(count) % classes)[torch.randperm(count, generator=generator)]
        return centers[y] + torch.randn(count, features, generator=generator), y

    return Arrays(*around_centers("train", n), *around_centers("test", n_test), classes=classes)
