"""What passes between training and a method: where training stands, parts of a batch, what a forward pass gave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from landscape.errors import InputError
from landscape.problem.batches import Batch
from trainers.method import examples


class Examples(Protocol):
    """The training set, as far as a method may see it."""

    @property
    def examples(self) -> int:
        """Number of training examples."""

    @property
    def classes(self) -> int:
        """Number of classes."""

    def batch(self, indices: Tensor) -> Batch:
        """The examples with these indices, not augmented, on the training device."""


@dataclass(frozen=True)
class Context:
    """Where training stands.

    Attributes:
        epoch: epochs finished before this step.
        step: steps finished before this one.
        total_steps: steps of the whole run (an estimate under a budget).
        steps_per_epoch: steps of one epoch.
        batch_size: examples of a full batch, of all processes together; None where nobody said.
        progress: share of the run that is done, in [0, 1]: t/T in schedules, right under budgets too.
        lr: learning rate of this step.
        lr_min: the learning rate at the end of the schedule.
        lr_max: the highest learning rate.
        warming: whether this step lies in the learning rate's warm-up.
        warmed: share of the warm-up that is over with this step, in (0, 1].
        warmup_steps: steps of the learning rate's warm-up; None where nobody said.
        seed: seed of the run, of which `Step.generator` derives its streams.
        training_set: for methods that look at examples outside the batch (SSAM) or keep something for every example
            (SAF).
    """

    epoch: int = 0
    step: int = 0
    total_steps: int = 1
    steps_per_epoch: int = 1
    batch_size: int | None = None
    progress: float = 0.0
    lr: float = 0.0
    lr_min: float = 0.0
    lr_max: float = 0.0
    warming: bool = False
    warmed: float = 1.0
    warmup_steps: int | None = None
    seed: int = 0
    training_set: Examples | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.progress <= 1:
            raise InputError(f"progress is the share of the run that is done, from 0 to 1, received {self.progress}")


@dataclass(frozen=True)
class Rows:
    """A part of the batch: `index` among this process's examples; `total`, the number chosen in the whole scope."""

    index: Tensor
    total: int


@dataclass(frozen=True)
class Pass:
    """What a forward pass gave; detached, except where an objective receives it.

    Attributes:
        loss: mean over the examples of the pass, 0-dim.
        logits: the model's outputs, (n, ...), at least float32.
        target: the targets of these examples.
        example_losses: (n,), or None where the loss is mean-reduced.
    """

    loss: Tensor
    logits: Tensor
    target: Any
    example_losses: Tensor | None = None

    @property
    def losses(self) -> Tensor:
        """Loss of each example, (n,)."""
        if self.example_losses is None:
            raise InputError("this method ranks or weighs examples: give Task a loss with reduction='none'")
        return self.example_losses

    @property
    def size(self) -> int:
        """Number of examples n."""
        return self.logits.shape[0]

    def hits(self) -> Tensor:
        """Number of examples classified correctly, 0-dim float64 on the device; nan without class indices.

        A sequence of classes counts by the share of it that is right.
        """
        each = examples.hits(self.logits, self.target)
        nowhere = torch.full((), float("nan"), dtype=torch.float64, device=self.logits.device)
        return nowhere if each is None else each.sum()

    def detached(self) -> Pass:
        """The same numbers without their graph."""
        losses = None if self.example_losses is None else self.example_losses.detach()
        return Pass(self.loss.detach(), self.logits.detach(), self.target, losses)
