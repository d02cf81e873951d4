"""Everything that is chosen for a run besides its method: plain values, checked when built, read without torch."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from landscape.errors import InputError, unknown
from trainers.names import convert_fields

BASES = ("sgd", "adam", "adamw", "lion", "muon")
SCHEDULES = ("cosine", "constant", "step")
PRECISIONS = ("float32", "bfloat16", "float16")
AVERAGES = ("ema", "swa", "lawa")
ENDS = ("epochs", "budget_passes", "budget_seconds")
"""The settings that say when a run ends, of which it has one."""
DEFAULT_LR = {"sgd": 0.1, "adam": 0.001, "adamw": 0.001, "lion": 0.0001, "muon": 0.001}
_WEIGHT_DECAY = {"sgd": 5e-4, "adam": 0.0, "adamw": 0.01, "lion": 0.1, "muon": 0.01}
_EPOCHS = 10
_AVERAGE: dict[str, tuple[str, float | int]] = {
    "ema": ("average_decay", 0.999),
    "swa": ("average_start", 0.75),
    "lawa": ("average_window", 6),
}
"""The option of each kind of average, and its default."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a network is trained, whatever the method.

    Args:
        data: a data set with its arguments, NAME[:key=value,...], or npz:FILE.
        model: a network with its arguments, NAME[:key=value,...].
        epochs: passes over the training set; default 10, where no budget says when to stop.
        budget_passes: train for this many forward-plus-backward passes over the training set: an SGD epoch is 1, a
            forward pass alone 1/3, a SAM epoch 2.
        budget_seconds: train for this many seconds, evaluation and saving not counted.
        batch_size: examples per step, of all processes together.
        base: optimizer that takes the gradient; adam, adamw, lion and muon bring their own.
        lr: highest learning rate; default 0.1 for sgd, 0.001 for adam, adamw and muon, 0.0001 for lion.
        lr_min: learning rate at the end of the cosine.
        schedule: cosine (half a period from lr to lr_min), constant, or step (times 0.1 at 1/2 and 3/4 of the run).
        warmup: steps over which the learning rate rises linearly from lr / warmup.
        momentum: of sgd.
        nesterov: Nesterov momentum for sgd.
        weight_decay: L2 coefficient of weights of two and more dimensions; default 5e-4 for sgd, 0 for adam, 0.01 for
            adamw and muon, 0.1 for lion.
        decay_all: decay biases, norm scales and tokens too.
        decay_inside: add weight_decay / 2 ||w||^2 to the loss that a method perturbs, instead of leaving it to the
            optimizer.
        label_smoothing: share of the target spread evenly over the classes.
        clip: largest Euclidean norm of the gradient that the optimizer gets; default no limit.
        label_noise: share of training labels changed to another class.
        m: examples that share one perturbation (m-sharpness); default the batch.
        per_process: under torchrun, each process perturbs by its own gradient instead of the global batch's.
        sync_batch_norm: under torchrun, BatchNorm normalizes with the statistics of the global batch instead of each
            process's part: several processes equal one.
        average: also average the weights, into average/ckpt.pt of the run's directory, BatchNorm statistics recomputed
            for them: ema (exponentially, over the steps), swa (equally, over the ends of the epochs of the run's last
            part) or lawa (over the ends of the latest epochs); default none.
        average_decay: of ema, a step; default 0.999, and less in the first steps: (1 + t) / (10 + t).
        average_start: of swa, the share of the run from which on weights are averaged; default 0.75.
        average_window: of lawa, the number of epochs; default 6.
        augment: crop and mirror images; default what the data set admits.
        drop_last: leave out an incomplete last batch.
        precision: float32, or automatic mixed precision in bfloat16 or float16 (with loss scaling).
        save_every: epochs between checkpoints; the last epoch is always saved.
        keep_every: epochs between checkpoints that are kept beside the last one as epoch-N.pt; 0 keeps none.
        data_dir: where data files lie; default $LANDSCAPE_DATA.
        seed: of initialization, order, augmentation and every draw of the method.
    """

    data: str = "digits"
    model: str = "small-cnn"
    epochs: int | None = None
    budget_passes: float | None = None
    budget_seconds: float | None = None
    batch_size: int = 128
    base: str = "sgd"
    lr: float | None = None
    lr_min: float = 0.0
    schedule: str = "cosine"
    warmup: int = 0
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float | None = None
    decay_all: bool = False
    decay_inside: bool = False
    label_smoothing: float = 0.0
    clip: float | None = None
    label_noise: float = 0.0
    m: int | None = None
    per_process: bool = False
    sync_batch_norm: bool = False
    average: str | None = None
    average_decay: float | None = None
    average_start: float | None = None
    average_window: int | None = None
    augment: bool | None = None
    drop_last: bool = False
    precision: str = "float32"
    save_every: int = 1
    keep_every: int = 0
    data_dir: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        convert_fields(self)
        for name, known in (("base", BASES), ("schedule", SCHEDULES), ("precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), known)
        if self.average is not None and self.average not in AVERAGES:
            raise unknown("average", self.average, AVERAGES)
        for name in ("epochs", "batch_size", "m", "save_every", "average_window"):
            _need(self, name, lambda v: v >= 1, "at least 1")
        for name in ("budget_passes", "budget_seconds", "lr", "clip"):
            _need(self, name, lambda v: v > 0, "above 0")
        for name in ("lr_min", "warmup", "keep_every", "weight_decay"):
            _need(self, name, lambda v: v >= 0, "at least 0")
        for name in ("momentum", "label_smoothing", "average_decay"):
            _need(self, name, lambda v: 0 <= v < 1, "in [0, 1)")
        _need(self, "average_start", lambda v: 0 <= v <= 1, "in [0, 1]")
        _need(self, "label_noise", lambda v: 0 <= v <= 1, "in [0, 1]")
        _need(self, "seed", lambda v: -(2**63) <= v < 2**63, "a whole number of 64 bits")
        ends = [name for name in ENDS if getattr(self, name) is not None]
        if len(ends) > 1:
            first, second = (f"--{name.replace('_', '-')} {getattr(self, name)}" for name in ends[:2])
            raise InputError(f"{first} and {second} are both given and each would end the run: choose one")
        self._refuse_what_would_do_nothing()
        if self.lr_min > (self.lr if self.lr is not None else DEFAULT_LR[self.base]):
            raise InputError(f"lr_min must not be above lr, received {self.lr_min}")
        if self.nesterov and self.momentum == 0:
            raise InputError("Nesterov momentum needs a momentum above 0")

    def _refuse_what_would_do_nothing(self) -> None:
        """An option that another one makes meaningless is a misunderstanding, not a choice."""
        if self.schedule != "cosine" and self.lr_min > 0:
            raise InputError(f"--lr-min is the end of the cosine, --schedule is {self.schedule}: leave one out")
        if self.m is not None and self.m > self.batch_size:
            raise InputError(f"m must not exceed the batch of {self.batch_size} examples, received {self.m}")
        for kind, (name, _) in _AVERAGE.items():
            if getattr(self, name) is not None and self.average != kind:
                has = "no average is asked for" if self.average is None else f"--average is {self.average}"
                raise InputError(f"--{name.replace('_', '-')} belongs to --average {kind}, and {has}: leave one out")
        if self.sync_batch_norm and (self.per_process or self.m is not None):
            other = "--per-process" if self.per_process else "--m"
            raise InputError(
                f"--sync-batch-norm and {other}: examples with their own perturbation have their own statistics"
            )

    def resolved(self, base: str | None) -> Settings:
        """With the defaults that depend on the base optimizer filled in; `base` is the one that the method brings.

        Raises:
            InputError: another base optimizer was asked for, or one of its options that the base has not.
        """
        if base is not None and self.base not in (base, Settings.base):
            raise InputError(f"--base {self.base}: the base optimizer of this method is {base}, leave --base out")
        base = base or self.base
        lr = DEFAULT_LR[base] if self.lr is None else self.lr
        decay = _WEIGHT_DECAY[base] if self.weight_decay is None else self.weight_decay
        if base != "sgd" and (self.nesterov or self.momentum != Settings.momentum):
            name = "nesterov" if self.nesterov else "momentum"
            raise InputError(f"--{name} belongs to sgd, the base optimizer is {base}, which has its own: leave it out")
        if self.decay_inside and not decay:
            raise InputError(f"--decay-inside moves the weight decay and that of {base} is 0: give --weight-decay")
        budgeted = self.budget_passes is not None or self.budget_seconds is not None
        epochs = _EPOCHS if self.epochs is None and not budgeted else self.epochs
        average: dict[str, Any] = {}
        if self.average is not None:
            name, default = _AVERAGE[self.average]
            average = {name: default if getattr(self, name) is None else getattr(self, name)}
        return dataclasses.replace(self, base=base, lr=lr, weight_decay=decay, epochs=epochs, **average)

    @property
    def plain(self) -> dict[str, Any]:
        """Every setting by its name, as plain values."""
        return dataclasses.asdict(self)


def _need(settings: Settings, name: str, holds: Any, needed: str) -> None:
    value = getattr(settings, name)
    if value is not None and not (math.isfinite(value) and holds(value)):
        raise InputError(f"{name.replace('_', '-')} must be {needed}, received {value}")
