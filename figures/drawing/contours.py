"""Loss surfaces side by side, as contours and in 3-D: several checkpoints on one color, contour and z scale."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from figures.drawing import style
from figures.page.grids import RISE, Grid, Scale, View, fineness, refined, tick_labels, views
from landscape.formatting import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CMAP = "viridis"
CENTER = "#D55E00"
"""Where the trained weights are: a color that viridis does not hold, as in the report."""


def pictures(planes: Sequence[Grid], notes: Sequence[str]) -> Iterator[tuple[str, Figure]]:
    """(name, figure) of contours and 3-D in every view; the first one's names are plain.

    Args:
        planes: two-dimensional grids.
        notes: lines under every picture.
    """
    shown = views(planes)
    for i, view in enumerate(shown):
        suffix = "" if i == 0 else {"linear": "-absolute", "log": "-log", "rise": "-rise"}[view.mode]
        lines = [_about(planes, view), *notes] if len(planes) > 1 else notes
        yield f"surface-contours{suffix}", style.footnote(contours(view), *lines)
        yield f"surface-3d{suffix}", style.footnote(surfaces(view), *lines)


def _about(planes: Sequence[Grid], view: View) -> str:
    """What the one scale of several surfaces shows."""
    own = ", ".join(f"{g.label} {number(g.center)}" for g in planes if math.isfinite(g.center))
    if view.mode == "rise":
        return f"One scale: the loss less each network's own at its trained weights ({own})"
    return f"One scale: {'log10 of the' if view.log else 'the'} loss; at the trained weights (dots) {own or 'unknown'}"


def contours(view: View) -> Figure:
    """Filled contours of every surface side by side, with one color bar."""
    import matplotlib.pyplot as plt

    drawn = view.drawn
    with style.use():
        columns = min(len(drawn), 4)
        rows = -(-len(drawn) // columns)
        width = style.COLUMN if len(drawn) == 1 else style.PAGE
        height = 2.75 if len(drawn) == 1 else 0.3 + rows * (0.25 + (width - 0.9) / columns)
        figure, panels = plt.subplots(
            rows, columns, figsize=(width, height), squeeze=False, sharex=True, sharey=True, layout="constrained"
        )
        for panel, grid in zip(panels.flat, drawn, strict=False):
            mappable = draw_contours(panel, grid, view.scale, log=view.log)
            panel.set_title(grid.label, parse_math=False)
        for panel in panels.flat[len(drawn) :]:
            panel.set_axis_off()
        _outer_labels(panels, drawn)
        color_bar(figure, mappable, panels, view.scale, log=view.log, label=drawn[0].quantity)
    return figure


def surfaces(view: View) -> Figure:
    """Every surface in 3-D side by side, all on one z and color scale and seen from the same side."""
    import matplotlib.pyplot as plt

    drawn = view.drawn
    with style.use():
        columns = min(len(drawn), 3)
        rows = -(-len(drawn) // columns)
        width = style.COLUMN if len(drawn) == 1 else style.PAGE
        # A square in 3-D leaves its upper part empty: rows are lower than their panels, which hold the titles there.
        figure = plt.figure(figsize=(width, rows * (2.55 if len(drawn) == 1 else 0.92 * width / columns)))
        square = (2.25 if len(drawn) == 1 else width / columns) / figure.get_figheight()
        for i, grid in enumerate(drawn):
            row, column = divmod(i, columns)
            box = ((column - 0.05) / columns, 1 - (row + 1) / rows, 1 / columns, square)
            panel = figure.add_axes(box, projection="3d")
            draw_surface(panel, grid, view.scale, log=view.log)
            figure.text(
                (column + 0.5) / columns, 1 - row / rows - 0.08 / figure.get_figheight(), grid.label,
                ha="center", va="top", weight="bold", parse_math=False,
            )  # fmt: skip
    return figure


def draw_contours(panel: Axes, grid: Grid, scale: Scale, *, log: bool = False) -> Any:
    """One surface as filled contours, the trained weights marked; returns what a color bar needs."""
    low, high = scale.limits(log)
    x, y, height = _smooth(grid, log)
    # A raster of the values below, lines at the shared levels above: no contour interval hides what is in between.
    mappable = panel.pcolormesh(x, y, height.T, cmap=CMAP, vmin=low, vmax=high, shading="gouraud", rasterized=True)
    with np.errstate(invalid="ignore"):
        levels = [v for v in scale.levels(log) if np.nanmin(height) < v < np.nanmax(height)]
    if levels:
        lines = panel.contour(x, y, height.T, levels=levels, colors="white", linewidths=0.5, linestyles="solid")
        words = dict(zip(levels, tick_labels([10**v if log else v for v in levels], least=2), strict=True))
        named = [v for v in levels[:: 2 + len(levels) // 8] if v != 0 or grid.quantity != RISE]  # 0 is at the dot
        panel.clabel(lines, named, fmt=words, fontsize=5, inline_spacing=2)
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
        panel.plot(0, 0, "o", color=CENTER, markersize=4, markeredgecolor="white", markeredgewidth=0.7, zorder=4)
    panel.locator_params(nbins=4, steps=[1, 2, 5, 10])  # four panels share a page: more labels would touch
    panel.set_aspect("equal" if np.isclose(np.ptp(x), np.ptp(y)) else "auto")
    panel.spines[["top", "right"]].set_visible(True)
    return mappable


def draw_surface(panel: Any, grid: Grid, scale: Scale, *, log: bool = False) -> None:
    """One surface in 3-D axes."""
    low, high = scale.limits(log)
    x, y, height = _smooth(grid, log)
    panel.computed_zorder = False  # the trained weights lie at the bottom: the wall in front must not hide them
    panel.plot_surface(
        *np.meshgrid(x, y, indexing="ij"), height, cmap=CMAP, vmin=low, vmax=high, rcount=120, ccount=120,
        linewidth=0, antialiased=False, rasterized=True,
    )  # fmt: skip
    center = math.log10(grid.center) if log and grid.center > 0 else grid.center
    if x.min() <= 0 <= x.max() and y.min() <= 0 <= y.max() and low <= center <= high:
        panel.plot([0], [0], [center], "o", color=CENTER, markersize=4, markeredgecolor="white", markeredgewidth=0.7)
    panel.set(zlim=(low, high), xlabel=grid.names[0], ylabel=grid.names[1])
    # The label of the z axis would lie across its ticks: it stands above the axis instead.
    word = "rise" if grid.quantity == RISE else grid.quantity
    panel.text(x.max(), y.max(), high + 0.12 * (high - low), word, ha="center", va="bottom")
    panel.patch.set_visible(False)  # it would cover the ticks of the panel to its left
    values, words = scale.ticks(log)
    panel.set_zticks(values, words)
    panel.view_init(elev=24, azim=-55)
    panel.set_box_aspect((1, 1, 0.75), zoom=0.83)
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


def _smooth(grid: Grid, log: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Axes and heights as the eye gets them, between the computed points cubic."""
    height = _height(grid.loss, log)
    parts = fineness(height)
    x, y = (refined(axis, parts) for axis in grid.axes)
    return x, y, refined(refined(height, parts).T, parts).T


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


def color_bar(
    figure: Figure, mappable: Any, panels: np.ndarray, scale: Scale, *, log: bool, label: str = "loss"
) -> None:
    """One color bar for all panels, with the losses at its ticks."""
    values, words = scale.ticks(log)
    bar = figure.colorbar(mappable, ax=panels, shrink=0.9, aspect=22 * len(panels), pad=0.02)
    bar.set_ticks(values, labels=words)
    bar.minorticks_off()
    bar.outline.set_visible(False)
    bar.set_label(label)
