"""Batches: shuffled and augmented for training, fixed for measuring."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from landscape.errors import InputError

if TYPE_CHECKING:
    from trainers.datasets import Data

PADDING = 4


def augment(x: Tensor, generator: torch.Generator, padding: int = PADDING) -> Tensor:
    """Random crops of zero-padded images, mirrored with probability 1/2: one gather for the whole batch.

    Images are standardized, so that the border of zeros has the training set's mean color. Draws, on the generator's
    device and in this order: n vertical shifts, n horizontal shifts, n mirrorings.

    Args:
        x: images (n, channels, height, width).
        generator: source of the draws; two generators in the same state give the same images.
        padding: pixels added on every side.

    Source: He, Zhang, Ren, Sun 2015, arXiv 1512.03385, section 4.2.
    """
    n, channels, height, width = x.shape
    drawn = torch.randint(2 * padding + 1, (2, n), generator=generator, device=generator.device)
    mirrored = torch.randint(2, (n, 1), generator=generator, device=generator.device).to(x.device)
    down, right = drawn.to(x.device).unsqueeze(-1)
    rows = down + torch.arange(height, device=x.device)
    columns = torch.arange(width, device=x.device)
    columns = right + torch.where(mirrored == 1, width - 1 - columns, columns)
    wide = width + 2 * padding
    pixels = (rows[:, :, None] * wide + columns[:, None, :]).view(n, 1, height * width)
    padded = F.pad(x, (padding,) * 4).flatten(2)
    return padded.gather(2, pixels.expand(n, channels, -1)).view(n, channels, height, width)


@dataclass(frozen=True, eq=False)
class TrainingBatches:
    """One epoch each time it is iterated: ``(inputs, targets, indices)``, shuffled, all on the data's device.

    All randomness (the permutation at the start of an epoch, the augmentation of each batch) comes from `generator`:
    with its state at the start of an epoch saved and restored, the same batches come again, bit for bit.

    Args:
        data: what to train on.
        batch_size: examples per batch; the last one may be smaller.
        generator: source of all draws.
        augment: crop and mirror the images.
        drop_last: leave out the last batch if it is not full.
    """

    data: Data
    batch_size: int
    generator: torch.Generator
    augment: bool = False
    drop_last: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"batch size {self.batch_size}: at least 1 is needed")
        if len(self) == 0:
            raise InputError(
                f"batch size {self.batch_size} is over the {self.data.size('train')} training examples and incomplete "
                "batches are dropped: choose a smaller batch"
            )
        if self.augment and len(self.data.input_shape) != 3:
            raise InputError(f"{self.data.name} has features, not images: train it without augmentation")

    def __len__(self) -> int:
        """Number of batches an epoch."""
        full, rest = divmod(self.data.size("train"), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        device = self.generator.device
        order = torch.randperm(self.data.size("train"), generator=self.generator, device=device)
        order = order.to(self.data.index_device)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            indices = order[start : start + self.batch_size]
            inputs = self.data.inputs(indices)
            if self.augment:
                inputs = augment(inputs, self.generator)
            indices = indices.to(self.data.device, non_blocking=True)
            yield inputs, self.data.targets(indices), indices


@dataclass(frozen=True, eq=False)
class FixedBatches:
    """``(inputs, targets)`` of one split in a fixed order, the same each time it is iterated: for measuring.

    Args:
        data: where the examples are.
        split: train or test.
        batch_size: examples per batch; the last one may be smaller.
        indices: which examples, in this order; None: all of them.
    """

    data: Data
    split: str
    batch_size: int
    indices: Tensor | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"batch size {self.batch_size}: at least 1 is needed")

    @property
    def examples(self) -> int:
        """Number of examples in all batches."""
        return self.data.size(self.split) if self.indices is None else len(self.indices)

    def __len__(self) -> int:
        """Number of batches."""
        return -(-self.examples // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, self.examples, self.batch_size):
            part = slice(start, min(start + self.batch_size, self.examples))
            chosen = part if self.indices is None else self.indices[part]
            yield self.data.inputs(chosen, self.split), self.data.targets(chosen, self.split)
