"""What anybody's arrays must be to be a data set, in whatever file they are: examples, labels, and their order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from landscape.archive import require_regular
from landscape.errors import InputError, unknown
from trainers.data import Arrays, Source

PARTS = ("train", "test")
LAYOUTS = ("auto", "channels-last", "channels-first", "gray")


@dataclass(frozen=True)
class Form:
    """How a file's arrays are named and ordered: the options that all files of arrays have.

    Args:
        x_train: name of the array or tensor of training examples; of HDF5 GROUP/NAME within a group.
        y_train: of their labels.
        x_test: of test examples.
        y_test: of their labels.
        layout: of images: auto, channels-last, channels-first or gray (n, height, width).
        train: training examples, the first of the file; default all.
        test: test examples, the first of the file; default all.

    Raises:
        InputError: an unknown layout, a number of examples below 1.
    """

    x_train: str = "x_train"
    y_train: str = "y_train"
    x_test: str = "x_test"
    y_test: str = "y_test"
    layout: str = "auto"
    train: int | None = None
    test: int | None = None

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise unknown("layout", self.layout, LAYOUTS)
        for part in PARTS:
            require_count(part, getattr(self, part))

    @property
    def names(self) -> list[str]:
        """Of the arrays."""
        return [self.x_train, self.y_train, self.x_test, self.y_test]

    def arrays(self, path: Path, held: Mapping[str, np.ndarray], *, first: bool = False) -> Arrays:
        """The data set of the arrays that a file holds; a part (training or test) whose arrays it lacks is empty.

        Args:
            path: the file.
            held: its arrays, by name.
            first: images of unknown layout are taken for channels-first, as torch stores them, where both are possible.

        Raises:
            InputError: an example or a label that is none, sizes that do not fit.
        """
        parts = {part: self._part(path, held, part, first) for part in PARTS}
        there = {part: pair for part, pair in parts.items() if pair is not None}
        shapes = {part: tuple(x.shape[1:]) for part, (x, _) in there.items()}
        if len(set(shapes.values())) > 1:
            names = [f"{getattr(self, f'x_{part}')} has shape {shape}" for part, shape in shapes.items()]
            raise InputError(f"{path}: an example of {', of '.join(names)}: they must be equal")
        some = next(iter(there.values()))
        empty = some[0][:0], some[1][:0]
        (x_train, y_train), (x_test, y_test) = (parts[part] or empty for part in PARTS)
        classes = max(int(y.max()) + 1 for _, y in there.values())
        color = some[0].ndim == 4 and some[0].shape[1] == 3 and some[0].dtype == torch.uint8
        return Arrays(x_train, y_train, x_test, y_test, classes, augment=color)

    def _part(
        self, path: Path, held: Mapping[str, np.ndarray], part: str, first: bool
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        keys = getattr(self, f"x_{part}"), getattr(self, f"y_{part}")
        if any(key not in held for key in keys):
            return None
        x, y = (held[key] for key in keys)
        for key, array in zip(keys, (x, y), strict=True):
            if array.ndim == 0:
                raise InputError(f"{path}: {key} is a single value ({array.dtype}): an array of all examples is needed")
            if array.size == 0:
                raise InputError(f"{path}: {key} has shape {array.shape}: it is empty")
        if len(x) != len(y):
            raise InputError(
                f"{path}: {keys[0]} has {len(x)} examples, {keys[1]} has {len(y)} labels: they must be equal"
            )
        size = getattr(self, part)
        if size is not None and size > len(y):
            raise InputError(f"{part}={size}: {path} holds {len(y)} examples of {keys[0]}")
        images, labels = _examples(path, keys[0], x[:size], self.layout, first), _labels(path, keys[1], y[:size])
        return images, labels


def file_of(source: Source, kind: str = "FILE") -> Path:
    """The path that the name of the data set goes on with.

    Raises:
        InputError: none, or no regular file.
    """
    if not source.file:
        name = source.name.partition(":")[0]
        raise InputError(f"{name} names no {kind.lower()}: write {name}:{kind}")
    path = Path(source.file).expanduser()
    require_regular(path)
    return path


def require_parts(path: Path, form: Form, present: Mapping[str, object], names: str) -> None:
    """Raise InputError where a file lacks both parts, or half of one; `names` are those of the arrays that it holds."""
    if not any(name in present for name in form.names):
        raise InputError(
            f"{path} lacks {', '.join(form.names)}: it holds {names or 'nothing'}; say which are which, --data-arg "
            "x_train=NAME --data-arg y_train=NAME"
        )
    for part in PARTS:
        pair = {option: getattr(form, option) for option in (f"x_{part}", f"y_{part}")}
        absent = [option for option, name in pair.items() if name not in present]
        if len(absent) == 1:
            name = pair.pop(absent[0])
            raise InputError(
                f"{path} holds {', '.join(pair.values())} and lacks {name}: both are needed; it holds {names}: say "
                f"which is meant, --data-arg {absent[0]}=NAME"
            )


def require_count(part: str, size: int | None) -> None:
    """Raise InputError for a number of examples below 1."""
    if size is not None and size < 1:
        raise InputError(f"{part}={size}: it is a number of examples, at least 1")


def _examples(path: Path, key: str, x: np.ndarray, layout: str, first: bool) -> torch.Tensor:
    if x.dtype != np.uint8 and x.dtype not in (np.float16, np.float32, np.float64):
        raise InputError(f"{path}: {key} is {x.dtype}: images must be uint8 or floating, features floating")
    gray = x.ndim == 3 and (x.dtype == np.uint8 or layout == "gray")
    if (x.ndim not in (2, 4) and not gray) or (x.ndim != 3 and layout == "gray"):
        raise InputError(
            f"{path}: {key} has shape {x.shape}: images are (n, height, width, channels) or channels first, uint8 or "
            "with --data-arg layout=gray (n, height, width), features (n, d)"
        )
    tensor = torch.from_numpy(x)
    if gray:
        return tensor.unsqueeze(1)
    if tensor.ndim == 4 and not _is_channels_first(x.shape, layout, first):
        tensor = tensor.permute(0, 3, 1, 2)
        return tensor if isinstance(x, np.memmap) else tensor.contiguous()
    return tensor


def _is_channels_first(shape: tuple[int, ...], layout: str, first: bool) -> bool:
    """Whether (n, a, b, c) are images of a channels: where that is not said, by which of a and c can be channels."""
    if layout != "auto":
        return layout == "channels-first"
    if first:
        return shape[1] <= 4 or shape[3] > 4
    return shape[1] in (1, 3) and shape[3] > 4


def _labels(path: Path, key: str, y: np.ndarray) -> torch.Tensor:
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.dtype.kind not in "iub" or y.ndim != 1:
        what = f"{path}: {key} is {y.dtype} of shape {y.shape}: labels are integers of shape (n,)"
        one_hot = (
            y.ndim == 2 and y.dtype.kind in "iubf" and bool((y.sum(1) == 1).all()) and bool(((y == 0) | (y == 1)).all())
        )
        raise InputError(f"{what}; these are one-hot, y.argmax(1) are their labels" if one_hot else what)
    absent = int((y < 0).sum())
    if absent:
        raise InputError(
            f"{path}: {key} must hold labels from 0, the smallest is {y.min()}: {absent} of {len(y)} examples have no "
            "label; leave them out of the file"
        )
    return torch.from_numpy(y.astype(np.int64))
