"""The datasets: one file per family, found by reading the files, so that listing them imports no torch.

A loader is ``@register("name") def name(source, *, options) -> Arrays``; ``source`` says where files lie and which seed
synthetic data are drawn from. Facts of the registration: ``download``, address and MD5 of every official file;
``small``, options that make the set small, for the contract tests; ``file``, what its name goes on with
(``npz:FILE``; see `trainers.names.FILE_PREFIXES`); ``options``, the dataclass of options that several have in common.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

DATA: Registry[Callable[..., Arrays]] = Registry("trainers.data", "dataset")


@dataclass(frozen=True)
class Source:
    """Where a loader reads: `directory` for official files, `file` of ``npz:FILE``, `seed` for what is drawn."""

    name: str
    directory: Path
    seed: int
    file: str = ""


@dataclass(frozen=True)
class Arrays:
    """What a loader returns: examples not yet standardized, on the CPU.

    `x_train` and `x_test` are images (n, channels, height, width), uint8 or floating, or features (n, d), floating;
    labels are int64 (n,). `augment` says that a shifted or mirrored image keeps its class. `moments` are the mean and
    standard deviation of what is drawn (per channel, uint8 in units of 255), where they are known without looking.
    Texts are int64 (n, length), tokens below `vocabulary` of which 0 fills rows up; to predict the next tokens labels
    are (n, length), -100 where none counts. `settled` are options by which the same examples and no others come again.
    """

    x_train: Any
    y_train: Tensor
    x_test: Any
    y_test: Tensor
    classes: int
    augment: bool = False
    moments: tuple[float, float] | None = None
    vocabulary: int | None = None
    settled: Mapping[str, Any] = field(default_factory=dict)


def data_directory(chosen: str | Path | None = None) -> Path:
    """The folder of datasets: the argument, else $LANDSCAPE_DATA, else ~/.cache/landscape."""
    return Path(chosen or os.environ.get("LANDSCAPE_DATA") or Path.home() / ".cache" / "landscape").expanduser()
