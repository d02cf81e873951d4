"""Datasets: ``load_data("cifar10")`` finds, checks, standardizes and holds a training and a test set."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from landscape.errors import InputError
from landscape.random import stream
from trainers.data import DATA, Arrays, Source, data_directory
from trainers.data.batches import FixedBatches
from trainers.data.fingerprint import fingerprint
from trainers.data.standardization import NORMALIZING, moments, normalization, require_unit_range, standardized
from trainers.default_dtype import float32_by_default
from trainers.names import checked_arguments, parse_name
from trainers.storable import without_tuples

STANDARDIZED_BYTES = 64 << 20
"""Up to this size examples are standardized once and kept in float32; larger sets keep their bytes."""

RESIDENT_BYTES = 4 << 30
"""Up to this size a split is moved to the device whole; a larger one stays where it is and is moved by the batch."""


@dataclass(frozen=True, eq=False)
class Data:
    """A training and a test set, standardized with the training set's moments.

    `x_train`, `x_test` and `inputs` give float32 images (n, channels, height, width) or features (n, d) with mean 0 and
    variance 1 over the training set, per channel or feature; `y_train`, `y_test` are int64 (n,). Texts are int64 tokens
    (n, length), as they are; where each next token is to be predicted labels are (n, length), -100 behind the end. How
    the examples are stored (uint8, float32 or a mapped file; on the device or beside it) shows nowhere else.

    ``load_data(data.name, **data.arguments)`` gives the same data again.

    Attributes:
        name: name that :func:`load_data` takes.
        arguments: plain values: the dataset's options, the seed, the label noise, the data directory if given.
        classes: number of classes.
        vocabulary: number of tokens; None where inputs are numbers.
        augment: shifted and mirrored examples keep their class (color photographs).
        mean: mean of the training set, (channels, 1, 1) or (d,), uint8 in units of 255.
        std: standard deviation (over n) likewise; 1 where it is 0.
        sha256: hash over dtype, shape and bytes of all four arrays before standardization, after label noise; of an
            array over 256 MiB over 1,024 evenly spaced blocks of examples, of noise images over their definition.
        stored_train: the training examples as they are kept.
        stored_test: the test examples as they are kept.
        standardized: whether they are kept standardized; tokens need not be.
    """

    name: str
    arguments: dict[str, Any]
    classes: int
    augment: bool
    stored_train: Any
    y_train: Tensor
    stored_test: Any
    y_test: Tensor
    mean: Tensor
    std: Tensor
    sha256: str
    standardized: bool
    vocabulary: int | None = None

    @property
    def x_train(self) -> Tensor:
        """All training inputs, in float32."""
        return self.inputs(slice(None), "train")

    @property
    def x_test(self) -> Tensor:
        """All test inputs, in float32."""
        return self.inputs(slice(None), "test")

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.stored_train.shape[1:])

    @property
    def kind(self) -> tuple[str, str]:
        """What inputs are (numbers or tokens), and what is predicted of one (a class, or next tokens)."""
        return "numbers" if self.vocabulary is None else "tokens", "class" if self.y_train.dim() == 1 else "next tokens"

    @property
    def device(self) -> torch.device:
        """Where inputs and targets come."""
        return self.y_train.device

    @property
    def index_device(self) -> torch.device:
        """Where the training examples are kept: indices there are used without a copy."""
        return self.stored_train.device

    def size(self, split: str = "train") -> int:
        """Number of examples of the split."""
        return len(self._split(split)[1])

    def require(self, split: str) -> None:
        """Raise InputError where the split has no examples: a file of arrays may hold one of both."""
        if not self.size(split):
            raise InputError(f"{self.name} has no {split} examples: give a file that has some, or another --split")

    def inputs(self, indices: Tensor | slice, split: str = "train") -> Tensor:
        """Inputs of the chosen examples on :attr:`device`: standardized float32, or tokens."""
        stored, _ = self._split(split)
        if isinstance(indices, Tensor):
            indices = indices.to(stored.device)
        chosen = stored[indices].to(self.device, non_blocking=True)
        return chosen if self.standardized else standardized(chosen, self.mean, self.std)

    def targets(self, indices: Tensor | slice, split: str = "train") -> Tensor:
        """Labels, or next tokens, of the chosen examples, on :attr:`device`."""
        _, labels = self._split(split)
        return labels[indices.to(labels.device) if isinstance(indices, Tensor) else indices]

    def batches(self, split: str, batch_size: int, indices: Tensor | None = None) -> FixedBatches:
        """Batches ``(inputs, targets)`` in fixed order, of all examples of the split or of those named."""
        self.require(split)
        return FixedBatches(self, split, batch_size, indices)

    def to(self, device: torch.device | str, budget: int | None = None) -> Data:
        """The same data with labels, and splits of at most `budget` bytes (default 4 GiB), on `device`."""
        limit = RESIDENT_BYTES if budget is None else budget
        names = ("stored_train", "stored_test", "y_train", "y_test", "mean", "std")
        values = {name: getattr(self, name) for name in names}
        moved = {
            name: value if name.startswith("stored") and value.nbytes > limit else value.to(device)
            for name, value in values.items()
        }
        return dataclasses.replace(self, **moved)

    def _split(self, split: str) -> tuple[Any, Tensor]:
        if split == "train":
            return self.stored_train, self.y_train
        if split == "test":
            return self.stored_test, self.y_test
        raise InputError(f"split {split!r}: choose train or test")


def change_since(checkpoint: Mapping[str, Any], data: Data) -> str | None:
    """How a checkpoint names other examples than these, in words; None where it was trained on these.

    What is drawn by the same name may differ from machine to machine by rounding, and counts as the same.
    """
    stored = checkpoint["data"]["arguments"]
    drawn = data.name in DATA and not DATA.entry(data.name).facts.keys() & {"file", "download"}
    same = all(stored.get(k, v) == v for k, v in without_tuples(data.arguments).items())
    before = checkpoint.get("provenance", {}).get("data_sha256", data.sha256)
    if before == data.sha256 or (drawn and same and checkpoint["data"]["name"] == data.name):
        return None
    return f"SHA-256 {str(before)[:12]}..., now {data.sha256[:12]}..."


@float32_by_default()
def load_data(
    name: str, *, data_dir: str | Path | None = None, seed: int = 0, label_noise: float = 0.0, **arguments: Any
) -> Data:
    """The dataset `name`, on the CPU.

    Args:
        name: one of ``DATA``, with or without arguments (``toy2d:variance=15``), or ``npz:FILE``, ``hdf5:FILE``,
            ``pt:FILE``, ``images:FOLDER``.
        data_dir: where official files are looked for (there and in a folder of the dataset's name); default
            $LANDSCAPE_DATA, then ~/.cache/landscape.
        seed: seed of what is drawn: synthetic examples and label noise.
        label_noise: share of the training labels that are changed to another class, drawn uniformly. A larger share
            changes the labels that a smaller one changes, and more.
        arguments: the dataset's own options; and for all of them what examples are normalized with, in place of the
            training set's moments: `normalization`, a name of ``NORMALIZATIONS`` ("none" for nothing), or `mean` and
            `std`, one number or one a channel, of values in [0, 1].

    Raises:
        InputError: for an unknown name or argument, or a file that is missing, corrupt or not admissible.
    """
    if not 0 <= label_noise <= 1:
        raise InputError(f"label noise {label_noise}: it is a share of the training labels, from 0 to 1")
    entry = DATA.entry(name.strip().partition(":")[0])
    name, written = parse_name(name)
    path = name.partition(":")[2] if entry.facts.get("file") else ""
    file = str(Path(path).expanduser().absolute()) if path else ""
    written |= arguments
    fixed = {key: written.pop(key) for key in NORMALIZING if written.get(key) is not None}
    options = checked_arguments(entry, {k: v for k, v in written.items() if k not in NORMALIZING})
    source = Source(name, data_directory(data_dir), seed, file)
    arrays = DATA[entry.name](source, **options)
    if label_noise:
        if arrays.y_train.dim() > 1:
            raise InputError(f"label noise changes classes, and {name} has next tokens: leave it out")
        labels = flip_labels(arrays.y_train, arrays.classes, label_noise, seed)
        arrays = dataclasses.replace(arrays, y_train=labels)
    if entry.facts.get("file"):
        options = {o.name: options[o.name] for o in entry.options if options[o.name] != o.default}
    options |= {**arrays.settled, "seed": seed, "label_noise": label_noise, **fixed}
    if data_dir is not None and entry.facts.get("download"):
        options["data_dir"] = str(Path(data_dir).expanduser().absolute())
    if fixed and arrays.vocabulary is not None:
        raise InputError(f"{', '.join(fixed)}: {name} has tokens, which are not normalized: leave it out")
    chosen = normalization(arrays, **fixed)
    return _prepare(f"{entry.name}:{file}" if file else name, options, arrays, chosen)


def flip_labels(labels: Tensor, classes: int, share: float, seed: int) -> Tensor:
    """`labels` with round(share n) of them, drawn without replacement, changed to a uniformly drawn other class."""
    if classes < 2:
        raise InputError("label noise needs at least two classes")
    generator = stream(seed, "label-noise")
    order = torch.randperm(len(labels), generator=generator)
    step = torch.randint(1, classes, (len(labels),), generator=generator)
    chosen = order[: round(share * len(labels))]
    flipped = labels.clone()
    flipped[chosen] = (labels[chosen] + step[chosen]) % classes
    return flipped


def _prepare(name: str, arguments: dict[str, Any], arrays: Arrays, chosen: tuple[Tensor, Tensor] | None) -> Data:
    tokens = arrays.vocabulary is not None
    if tokens:
        mean, std = torch.zeros(()), torch.ones(())
    elif chosen is not None:
        mean, std = chosen
        if mean.any() or (std != 1).any():
            for key, x in (("x_train", arrays.x_train), ("x_test", arrays.x_test)):
                require_unit_range(name, key, x)
    elif arrays.moments is not None:
        shape = (arrays.x_train.shape[1], 1, 1)
        mean, std = (torch.full(shape, moment) for moment in arrays.moments)
    else:
        if not len(arrays.x_train):
            raise InputError(
                f"{name} holds no training examples, whose mean and deviation examples are normalized with: say both, "
                "--data-arg normalization=imagenet or --data-arg mean=... --data-arg std=..."
            )
        mean, std = moments(name, "x_train", arrays.x_train)
        if len(arrays.x_test):
            moments(name, "x_test", arrays.x_test)
    sha256 = fingerprint(arrays.x_train, arrays.y_train, arrays.x_test, arrays.y_test)
    stored = [arrays.x_train, arrays.x_test]
    small = tokens or all(isinstance(x, Tensor) and 4 * x.numel() <= STANDARDIZED_BYTES for x in stored)
    if small and not tokens:
        stored = [standardized(x, mean, std) for x in stored]
    return Data(
        name=name,
        arguments=arguments,
        classes=arrays.classes,
        augment=arrays.augment,
        stored_train=stored[0],
        y_train=arrays.y_train,
        stored_test=stored[1],
        y_test=arrays.y_test,
        mean=mean,
        std=std,
        sha256=sha256,
        standardized=small,
        vocabulary=arrays.vocabulary,
    )
