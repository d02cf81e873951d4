"""Curves with their intervals: the mean over seeds as a line, its 95% interval as a band."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from figures.drawing import style
from landscape import statistics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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


_HOLLOW: dict[str, Any] = {
    "marker": "D", "markersize": 3.8, "markerfacecolor": "none", "markeredgecolor": "black", "markeredgewidth": 0.8,
}  # fmt: skip


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
        # Black bands turn those of other colors gray where they lie over them.
        axes.fill_between(x, low, high, color=ink, alpha=0.09 if ink == COLORS["mesa"] else 0.18, linewidth=0)
    last = np.flatnonzero(np.isfinite(mean))
    at = int(last[-1]) if len(last) else 0
    return float(np.asarray(x)[at]), float(mean[at])


def points(axes: Axes, heights: Sequence[float], values: Any, inks: Sequence[str]) -> None:
    """Draw every row of values (group, seed) at its height: mean and interval, the seeds as dots below them."""
    for height, row, ink in zip(heights, np.asarray(values, dtype=np.float64), inks, strict=True):
        mean, half = interval(row)
        axes.plot(row, np.full(len(row), height - 0.2), "o", color=ink, alpha=0.5, markersize=2.4, markeredgewidth=0)
        axes.errorbar([mean], [height + 0.05], xerr=[np.nan_to_num(half)], fmt="o", color=ink, elinewidth=1)


def published(axes: Axes, heights: Sequence[float], values: Sequence[float]) -> None:
    """Mark what a paper reports above the points of its row: hollow diamonds, which are no measurements of ours."""
    axes.plot(values, [h + 0.32 for h in heights], linestyle="none", **_HOLLOW)


def explain_points(figure: Figure, dots: str, source: str = "") -> None:
    """The legend of `points`, and of `published` where `source` says whose numbers those are."""
    from matplotlib.lines import Line2D

    dot: dict[str, Any] = {"linestyle": "none", "markersize": 2.4, "markeredgewidth": 0, "alpha": 0.6}
    handles = [
        Line2D([], [], color="#555555", marker="o", markersize=3.5, linewidth=1, label="mean, 95% interval"),
        Line2D([], [], color="#555555", marker="o", label=dots, **dot),
    ]
    if source:
        handles.append(Line2D([], [], linestyle="none", label=source, **_HOLLOW))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, columnspacing=2)


def name_lines(axes: Axes, ends: Mapping[str, tuple[float, float]], inks: Mapping[str, str]) -> None:
    """Write each label at its line's right end, in its color."""
    style.label_lines(axes, {t: (*end, inks[t]) for t, end in ends.items()})
