"""The mean of a run's weights: EMA, SWA, LAWA. Training itself goes on as without it.

EMA: v <- decay_t v + (1 - decay_t) w after every step t = 0, 1, ..., from v = w before the first, with decay_t =
min(decay, (1 + t) / (10 + t)), so that a short run is not the mean of its start (Polyak and Juditsky 1992; the rise is
TensorFlow's). SWA: the equal mean of the weights at the ends of the epochs from a share of the run on (Izmailov et al.
2018, arXiv 1803.05407, where the learning rate is constant or cyclic in that part: --schedule constant). LAWA: the mean
at the ends of the latest epochs (Kaddour 2022, arXiv 2209.14981).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from landscape import processes
from landscape.problem.evaluator import copied
from landscape.random import stream
from trainers.data.batches import TrainingBatches
from trainers.datasets import Data
from trainers.loop.settings import Settings
from trainers.method.batch_norm import SynchronizedBatchNorm


@dataclass(frozen=True)
class Averaged:
    """A network with averaged weights.

    Attributes:
        model: the network, in evaluation mode.
        count: how many weights went into the mean: steps of ema, epochs of swa and lawa.
        test_loss: its cross-entropy on the test set.
        test_accuracy: in [0, 1].
    """

    model: nn.Module
    count: int
    test_loss: float
    test_accuracy: float


class WeightAverage:
    """A mean of the weights, moved along with training.

    Args:
        settings: which mean (`average`), and its options.
        parameters: of the network, in place.

    Attributes:
        count: how many weights were taken in.
        sets: sets of tensors whose mean it is: one of EMA and SWA, a ring of `average_window` of LAWA.
    """

    def __init__(self, settings: Settings, parameters: Sequence[Tensor]) -> None:
        self.settings, self.parameters, self.count = settings, list(parameters), 0
        self.sets: dict[str, list[Tensor]] = {} if settings.average == "lawa" else {"0": self._now()}

    def after_step(self) -> None:
        """Take in the weights after an optimizer's step that was not skipped."""
        if self.settings.average == "ema":
            assert self.settings.average_decay is not None
            self._move(1 - min(self.settings.average_decay, (1 + self.count) / (10 + self.count)))

    def after_epoch(self, progress: float) -> None:
        """Take in the weights at the end of an epoch, with this share of the run done."""
        if self.settings.average == "lawa":
            assert self.settings.average_window is not None
            self.sets[str(self.count % self.settings.average_window)] = self._now()
            self.count += 1
        elif self.settings.average == "swa":
            assert self.settings.average_start is not None
            if progress >= self.settings.average_start:
                self._move(1 / (self.count + 1))

    @property
    def members(self) -> int:
        """How many weights are in the mean now: of LAWA, those in the ring."""
        return len(self.sets) if self.settings.average == "lawa" else self.count

    def weights(self) -> list[Tensor]:
        """The mean, one tensor a parameter."""
        columns = zip(*self.sets.values(), strict=True)
        return [torch.stack(column).mean(0, dtype=torch.float64).to(column[0].dtype) for column in columns]

    @property
    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {"count": self.count, "sets": self.sets}

    def _move(self, share: float) -> None:
        with torch.no_grad():
            torch._foreach_lerp_(self.sets["0"], self.parameters, share)
        self.count += 1

    def _now(self) -> list[Tensor]:
        return [p.detach().clone(memory_format=torch.preserve_format) for p in self.parameters]


def averaged_network(model: nn.Module, average: WeightAverage, data: Data, channels_last: bool) -> nn.Module:
    """A copy of the network in evaluation mode with the mean of its weights, and BatchNorm statistics of its own.

    Buffers that are no BatchNorm statistics are those of the network as it is. Costs a forward pass over the training
    set where there is BatchNorm.

    Args:
        model: the network that is trained.
        average: of its parameters.
        data: whose training set the statistics are taken of.
        channels_last: the memory format of images.
    """
    places = {id(p): i for i, p in enumerate(average.parameters)}
    numbers = [places.get(id(p)) for p in model.parameters()]
    network, weights = copied(model), average.weights()
    with torch.no_grad():
        for p, number in zip(network.parameters(), numbers, strict=True):
            if number is not None:
                p.copy_(weights[number])
    _recompute_statistics(network, data, average.settings, channels_last)
    return network


def _recompute_statistics(network: nn.Module, data: Data, settings: Settings, channels_last: bool) -> None:
    """Running statistics from scratch: their mean over the batches of the training set, shuffled, not augmented.

    A last batch that is smaller is left out: it would weigh as much as a full one.
    """
    network.eval()
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum, norm.training = None, True
    divided = any(isinstance(norm, SynchronizedBatchNorm) for norm in norms)
    generator = stream(settings.seed, "statistics of the average")
    if data.device.type == "cuda":
        generator = torch.Generator(data.device).manual_seed(generator.initial_seed())
    full = data.size("train") >= settings.batch_size
    with torch.no_grad():
        for inputs, _, _ in TrainingBatches(data, settings.batch_size, generator, augment=False, drop_last=full):
            part = inputs.tensor_split(processes.world())[processes.rank()] if divided else inputs
            network(part.contiguous(memory_format=torch.channels_last) if channels_last else part)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()
