"""Curves with their intervals: the mean over seeds as a line, its 95% interval as a band."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from figures.drawing import style
from landscape import statistics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABELS = {
    "sgd": "SGD",
    "adam": "Adam",
    "adamw": "AdamW",
    "lion": "Lion",
    "muon": "Muon",
    "subset-sam": "subset-SAM",
    "rst": "RST",
    "g-rst": "G-RST",
    "looksam": "LookSAM",
    "k-sam": "K-SAM",
    "friendly-sam": "F-SAM",
    "random-perturbation": "random",
    "vasso": "VaSSO",
    "functional-sam": "functional SAM",
    "eigen-sam": "Eigen-SAM",
    "flat-lora": "flat LoRA",
}
_ORDER = ("sgd", "sam", "asam", "saf")
"""Methods that share a figure have different colors, and every method keeps its own from figure to figure."""
COLORS = {
    **{m: style.color(i) for i, m in enumerate(_ORDER)},
    "mesa": "#000000",
    "adam": "#0072B2",
    "adamw": "#56B4E9",
    "rst": "#56B4E9",
    "g-rst": "#E69F00",
    "k-sam": "#CC79A7",
    "esam": "#E69F00",
    "looksam": "#56B4E9",
    "gsam": "#8C564B",
    "subset-sam": "#666666",
}


def label(method: str) -> str:
    """A method's name as its paper writes it."""
    return LABELS.get(method, method.upper())


def color(method: str, index: int = 0) -> str:
    """The method's color; the palette's color `index` for one without its own."""
    return COLORS.get(method, style.color(index))


def interval(values: Any, axis: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Mean over the seeds on `axis` and the half-width of its Student's t interval; nan for a single seed."""
    x = np.asarray(values, dtype=np.float64)
    n = x.shape[axis]
    if n < 2:
        return x.mean(axis), np.full(x.mean(axis).shape, np.nan)
    return x.mean(axis), statistics.half_width(x, axis)


def band(axes: Axes, x: Any, values: Any, ink: str, *, log: bool = False, **line: Any) -> tuple[float, float]:
    """Draw mean and interval of values (seed, x); returns the right end of the line.

    With `log` they are those of the logarithm (the geometric mean), as a logarithmic axis asks for; values that are
    not positive leave a gap.
    """
    if log:
        values = np.asarray(values, dtype=np.float64)
        mean, half = interval(np.log(np.where(values > 0, values, np.nan)))
        mean, low, high = np.exp(mean), np.exp(mean - half), np.exp(mean + half)
    else:
        mean, half = interval(values)
        low, high = mean - half, mean + half
    axes.plot(x, mean, color=ink, **line)
    if np.isfinite(half).any():
        axes.fill_between(x, low, high, color=ink, alpha=0.18, linewidth=0)
    last = np.flatnonzero(np.isfinite(mean))
    at = int(last[-1]) if len(last) else 0
    return float(np.asarray(x)[at]), float(mean[at])


def points(axes: Axes, positions: Sequence[float], values: Any, inks: Sequence[str]) -> None:
    """Draw for every row of values (group, seed) its seeds as dots, its mean and interval beside them."""
    for position, row, ink in zip(positions, np.asarray(values, dtype=np.float64), inks, strict=True):
        mean, half = interval(row)
        axes.plot(np.full(len(row), position - 0.14), row, "o", color=ink, alpha=0.5, markersize=2.2, markeredgewidth=0)
        axes.errorbar([position + 0.08], [mean], [np.nan_to_num(half)], fmt="o", color=ink, elinewidth=1)


def name_lines(axes: Axes, ends: Mapping[str, tuple[float, float]], inks: Mapping[str, str]) -> None:
    """Write each label at its line's right end, in its color."""
    style.label_lines(axes, {t: (*end, inks[t]) for t, end in ends.items()})
