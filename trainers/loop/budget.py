"""How long a run is, and its learning rate: pure functions of what was spent, so that schedules end at the budget."""

from __future__ import annotations

import math
from dataclasses import dataclass

from landscape.errors import InputError
from landscape.problem.batch_passes import Passes
from trainers.loop.settings import Settings

MILESTONES = (0.5, 0.75)
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Budget:
    """What a run may spend: epochs, passes over the training set, or seconds.

    Args:
        kind: "epochs", "passes" or "seconds".
        amount: how many.
        steps_per_epoch: optimization steps of one epoch.
        examples: size n of the training set.
    """

    kind: str
    amount: float
    steps_per_epoch: int
    examples: int

    @classmethod
    def of(cls, settings: Settings, steps_per_epoch: int, examples: int) -> Budget:
        """The budget that the settings ask for."""
        if settings.budget_passes is not None:
            return cls("passes", settings.budget_passes, steps_per_epoch, examples)
        if settings.budget_seconds is not None:
            return cls("seconds", settings.budget_seconds, steps_per_epoch, examples)
        assert settings.epochs is not None  # of resolved settings
        return cls("epochs", settings.epochs, steps_per_epoch, examples)

    def spent_passes(self, passes: Passes) -> float:
        """Forward-plus-backward passes over the training set: (forward + 2 backward) / 3n, examples each."""
        return (passes.forward + 2 * passes.backward) / (3 * self.examples)

    def progress(self, step: int, passes: Passes, seconds: float) -> float:
        """Share of the budget that is spent, in [0, 1]."""
        if self.kind == "epochs":
            share = step / (self.amount * self.steps_per_epoch)
        elif self.kind == "passes":
            share = self.spent_passes(passes) / self.amount
        else:
            share = seconds / self.amount
        return 1.0 if share > 1 - _ROUNDING else share

    def total_steps(self, step: int, progress: float) -> int:
        """Steps of the whole run: known for epochs, else estimated from what the steps so far have spent."""
        if self.kind == "epochs":
            return int(self.amount) * self.steps_per_epoch
        if progress > 0:
            return max(step, round(step / progress))
        return math.ceil(self.amount * self.steps_per_epoch) if self.kind == "passes" else max(step, 1)


@dataclass(frozen=True)
class Schedule:
    """The learning rate as a function of the step and of the share of the budget that is spent.

    lr = highest * min(1, (step + 1) / warmup) * decay(progress), the warm-up's factor on top of the decay, so that the
    curve has no jump and ends at lr_min whatever the method spends a step.

    Args:
        kind: "cosine": lr_min + (highest - lr_min) (1 + cos(pi progress)) / 2; "constant"; "step": times 0.1 at 1/2
            and at 3/4.
        highest: the learning rate that the decay starts from.
        lowest: lr_min of the cosine.
        warmup: steps of the warm-up.
    """

    kind: str
    highest: float
    lowest: float = 0.0
    warmup: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("cosine", "constant", "step"):
            raise InputError(f"schedule must be cosine, constant or step, received {self.kind!r}")

    @property
    def final(self) -> float:
        """The learning rate at the end."""
        if self.kind == "cosine":
            return self.lowest
        return self.highest * (0.1 ** len(MILESTONES) if self.kind == "step" else 1.0)

    def warming(self, step: int) -> bool:
        """Whether the step (0 is the first) lies in the warm-up."""
        return step < self.warmup

    def warmed(self, step: int) -> float:
        """Share of the warm-up that is over with the step (0 is the first)."""
        return min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0

    def rate(self, step: int, progress: float) -> float:
        """Learning rate of a step (0 is the first) at this share of the budget."""
        if self.kind == "cosine":
            value = self.lowest + (self.highest - self.lowest) * (1 + math.cos(math.pi * progress)) / 2
        elif self.kind == "step":
            value = self.highest * 0.1 ** sum(progress >= share for share in MILESTONES)
        else:
            value = self.highest
        return value * self.warmed(step)
