"""Every measure over the steps of a run: one panel per measure, below each other on one axis of steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from figures.drawing import style
from figures.page.run import half_width, panels, titles
from landscape.results.result import LabelledArrays

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST = 6
"""Lines of one panel: of more layers or eigenvalues the first."""
_DECADES = 30.0
"""Positive values that differ by more than this factor get a logarithmic axis."""


def write(table: LabelledArrays, rows: Sequence[Mapping[str, Any]], unit: str, directory: Path) -> list[Path]:
    """Draw run.pdf and run.png; returns the files written."""
    facts = {**table.provenance, "checkpoints": [row["sha256"] for row in rows]}
    return style.save(draw(table, titles(rows), unit), directory / "run", facts, title="run")


def draw(table: LabelledArrays, titles: Mapping[str, str], unit: str) -> Figure:
    """The loss, the accuracy where there is one, and every measure with its error.

    Args:
        table: see `figures.page.run.as_table`.
        titles: measure -> title of its panel; the columns of a panel begin with the measure's name.
        unit: name of the axis of steps.
    """
    import matplotlib.pyplot as plt

    drawn = panels(table, unit, titles)
    with style.use():
        size = (style.COLUMN, 0.35 + 1.15 * len(drawn))
        figure, axes = plt.subplots(len(drawn), 1, figsize=size, sharex=True, squeeze=False, layout="constrained")
        for panel, (key, columns) in zip(axes[:, 0], drawn.items(), strict=True):
            _panel(panel, table, unit, columns)
            panel.set_title({"loss": "Loss", "accuracy": "Accuracy"}.get(key, titles.get(key, key)))
        axes[-1, 0].set_xlabel(unit)
    return figure


def _panel(panel: Axes, table: LabelledArrays, unit: str, columns: Sequence[str]) -> None:
    values = [table[name] for name in columns[:_MOST]]
    several = len(columns) > 1
    for i, (name, value) in enumerate(zip(columns, values, strict=False)):
        label = name.rpartition(".")[2] if several else None
        panel.plot(table[unit], value, marker="o", markersize=2.2, color=style.color(i), label=label)
        half = half_width(table, name)
        if half is not None and np.isfinite(half).any():
            panel.fill_between(table[unit], value - half, value + half, color=style.color(i), alpha=0.2, linewidth=0)
    finite = np.concatenate([v[np.isfinite(v)] for v in values])
    if finite.size and finite.min() > 0 and finite.max() > _DECADES * finite.min():
        panel.set_yscale("log")
    if several:
        panel.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=1.0)
