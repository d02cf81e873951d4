"""An epoch: how the training set is divided into steps, and each step's batch among the processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from landscape.errors import InputError
from landscape.random import stream
from trainers.data.batches import TrainingBatches
from trainers.datasets import Data
from trainers.loop.settings import Settings


@dataclass(frozen=True)
class Share:
    """This process's part of a batch.

    Attributes:
        inputs: its examples.
        targets: their labels.
        indices: their places in the training set.
        sizes: examples on each process.
    """

    inputs: Tensor
    targets: Tensor
    indices: Tensor
    sizes: list[int]


class Epochs:
    """The batches of any epoch; a function of the settings, of the seed among them, and of the epoch's number.

    Args:
        data: the training set.
        settings: batch size, augmentation, seed.
        device: where training goes on.
        world: number of processes.
        rank: number of this one.
        normalized: whether layers normalize with the statistics of a batch, so that one example is not enough.

    Raises:
        InputError: a batch has fewer examples than there are processes or than its layers need.
    """

    def __init__(
        self, data: Data, settings: Settings, device: torch.device, world: int, rank: int, normalized: bool
    ) -> None:
        self.data, self.settings, self.device, self.world, self.rank = data, settings, device, world, rank
        size, n = settings.batch_size, data.size("train")
        if min(size, n) < world:
            raise InputError(f"batch size {size} is below the number of processes, {world}: each needs an example")
        last = 0 if settings.drop_last else n % size
        if last == 1 and normalized:
            raise InputError(
                f"{n} examples in batches of {size} leave a last batch of one example, which BatchNorm cannot "
                "normalize: choose another --batch-size or --drop-last"
            )
        self.steps = len(self._batches(0)) - (0 < last < world)

    def __call__(self, epoch: int) -> Iterator[Share]:
        """This process's part of every batch of the epoch (0 is the first)."""
        for _, batch in zip(range(self.steps), self._batches(epoch), strict=False):
            yield self._share(*batch)

    def _batches(self, epoch: int) -> TrainingBatches:
        s = self.settings
        generator = stream(s.seed, f"epoch {epoch}")
        if self.device.type == "cuda":
            generator = torch.Generator(self.device).manual_seed(generator.initial_seed())
        augment = self.data.augment if s.augment is None else s.augment
        return TrainingBatches(self.data, s.batch_size, generator, augment=augment, drop_last=s.drop_last)

    def _share(self, inputs: Tensor, targets: Tensor, indices: Tensor) -> Share:
        world = self.world
        if world == 1:
            return Share(inputs, targets, indices, [inputs.shape[0]])
        if self.settings.per_process:  # equal shares, so that processes count and stop alike
            inputs = inputs[: inputs.shape[0] // world * world]
        sizes = [inputs.shape[0] // world + (r < inputs.shape[0] % world) for r in range(world)]
        first = sum(sizes[: self.rank])
        part = slice(first, first + sizes[self.rank])
        return Share(inputs[part], targets[part], indices[part], sizes)
