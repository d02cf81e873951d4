"""Loss surfaces side by side, as contours and in 3-D: several checkpoints on one color, contour and z scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from figures.drawing import style
from figures.page.grids import Grid, Scale, shared_scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CMAP = "viridis"


def contours(drawn: Sequence[Grid], *, log: bool = False, scale: Scale | None = None) -> Figure:
    """Filled contours of every surface side by side, with one color bar.

    Args:
        drawn: two-dimensional grids.
        log: color and levels by log10(loss).
        scale: shared by all; by default that of `drawn`.
    """
    import matplotlib.pyplot as plt

    scale = scale or shared_scale(drawn)
    with style.use():
        columns = min(len(drawn), 4)
        rows = -(-len(drawn) // columns)
        width = style.COLUMN if len(drawn) == 1 else style.PAGE
        height = 2.75 if len(drawn) == 1 else 0.3 + rows * (0.25 + (width - 0.9) / columns)
        figure, panels = plt.subplots(
            rows, columns, figsize=(width, height), squeeze=False, sharex=True, sharey=True, layout="constrained"
        )
        for panel, grid in zip(panels.flat, drawn, strict=False):
            mappable = draw_contours(panel, grid, scale, log=log)
            panel.set_title(grid.label)
        for panel in panels.flat[len(drawn) :]:
            panel.set_axis_off()
        _outer_labels(panels, drawn)
        color_bar(figure, mappable, panels, scale, log)
    return figure


def surfaces(drawn: Sequence[Grid], *, log: bool = False, scale: Scale | None = None) -> Figure:
    """Every surface in 3-D side by side, all on one z and color scale and seen from the same side.

    Args:
        drawn: two-dimensional grids.
        log: height and color by log10(loss).
        scale: shared by all; by default that of `drawn`.
    """
    import matplotlib.pyplot as plt

    scale = scale or shared_scale(drawn)
    with style.use():
        columns = min(len(drawn), 3)
        rows = -(-len(drawn) // columns)
        width = style.COLUMN if len(drawn) == 1 else style.PAGE
        figure = plt.figure(figsize=(width, rows * (2.55 if len(drawn) == 1 else 0.1 + width / columns)))
        top = 0.3 / figure.get_figheight()
        for i, grid in enumerate(drawn):
            row, column = divmod(i, columns)
            box = ((column - 0.04) / columns, 1 - (row + 1) / rows, 1 / columns, (1 - top) / rows)
            panel = figure.add_axes(box, projection="3d")
            draw_surface(panel, grid, scale, log=log)
            figure.text(
                (column + 0.5) / columns, 1 - row / rows - 0.08 / figure.get_figheight(), grid.label,
                ha="center", va="top", weight="bold",
            )  # fmt: skip
    return figure


def draw_contours(panel: Axes, grid: Grid, scale: Scale, *, log: bool = False) -> Any:
    """One surface as filled contours, the trained weights marked; returns what a color bar needs."""
    low, high = scale.limits(log)
    x, y = grid.axes
    loss = _height(grid.loss, log).T
    # A raster of the values below, lines at the shared levels above: no contour interval hides what is in between.
    mappable = panel.pcolormesh(x, y, loss, cmap=CMAP, vmin=low, vmax=high, shading="gouraud", rasterized=True)
    with np.errstate(invalid="ignore"):
        levels = [v for v in scale.levels(log) if np.nanmin(loss) < v < np.nanmax(loss)]
    if levels:
        panel.contour(x, y, loss, levels=levels, colors="white", linewidths=0.5, linestyles="solid", alpha=0.8)
    if grid.marks is not None and grid.marks.shape[1] > 1:
        panel.plot(
            *grid.marks.T,
            "-o" if grid.joined else "o",
            color="white",
            linewidth=0.8,
            markersize=2.5,
            markeredgecolor="black",
        )
    if x.min() <= 0 <= x.max() and y.min() <= 0 <= y.max():
        panel.plot(0, 0, marker="+", color="white", markersize=7, markeredgewidth=1.2)
    panel.locator_params(nbins=4, steps=[1, 2, 5, 10])  # four panels share a page: more labels would touch
    panel.set_aspect("equal" if np.isclose(np.ptp(x), np.ptp(y)) else "auto")
    panel.spines[["top", "right"]].set_visible(True)
    return mappable


def draw_surface(panel: Any, grid: Grid, scale: Scale, *, log: bool = False) -> None:
    """One surface in 3-D axes."""
    low, high = scale.limits(log)
    x, y = np.meshgrid(*grid.axes, indexing="ij")
    panel.plot_surface(
        x, y, _height(grid.loss, log), cmap=CMAP, vmin=low, vmax=high, rcount=100, ccount=100,
        linewidth=0, antialiased=False, rasterized=True,
    )  # fmt: skip
    panel.set(zlim=(low, high), xlabel=_short(grid.names[0]), ylabel=_short(grid.names[1]))
    # The label of the z axis would lie across its ticks: it stands above the axis instead.
    panel.text(grid.axes[0].max(), grid.axes[1].max(), high + 0.12 * (high - low), "loss", ha="center", va="bottom")
    panel.patch.set_visible(False)  # it would cover the ticks of the panel to its left
    values, words = scale.ticks(log)
    panel.set_zticks(values, words)
    panel.view_init(elev=24, azim=-55)
    panel.set_box_aspect((1, 1, 0.75), zoom=0.9)
    panel.locator_params(axis="x", nbins=3, steps=[1, 2, 5, 10])
    panel.locator_params(axis="y", nbins=3, steps=[1, 2, 5, 10])
    for axis in (panel.xaxis, panel.yaxis, panel.zaxis):
        axis.pane.set_facecolor("white")
        axis.pane.set_edgecolor("#d9dde2")
        axis._axinfo["grid"].update(color="#e3e6ea", linewidth=0.4)
        axis.labelpad = -5
        axis.label.set_size(7)
    panel.tick_params(pad=-3, labelsize=6)
    panel.tick_params(axis="z", pad=2)


def _short(name: str) -> str:
    """An axis' name where there is little room: "random direction 1 (unit)" without its kind."""
    return name[name.find("direction") :] if "direction" in name else name


def _height(loss: np.ndarray, log: bool) -> np.ndarray:
    if not log:
        return loss
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(loss > 0, np.log10(loss), np.nan)


def _outer_labels(panels: np.ndarray, drawn: Sequence[Grid]) -> None:
    """Names of the axes on the left and under the lowest panel of each column; the last row may be short."""
    for i, panel in enumerate(panels.flat[: len(drawn)]):
        if i + panels.shape[1] >= len(drawn):
            panel.set_xlabel(drawn[0].names[0])
            panel.tick_params(labelbottom=True)
    for panel in panels[:, 0]:
        panel.set_ylabel(drawn[0].names[1])


def color_bar(figure: Figure, mappable: Any, panels: np.ndarray, scale: Scale, log: bool) -> None:
    """One color bar for all panels, with the losses at its ticks."""
    values, words = scale.ticks(log)
    bar = figure.colorbar(mappable, ax=panels, shrink=0.9, aspect=22 * len(panels), pad=0.02)
    bar.set_ticks(values, labels=words)
    bar.minorticks_off()
    bar.outline.set_visible(False)
    bar.set_label("loss")
