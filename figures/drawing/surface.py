"""Loss surfaces on paper: contours and 3-D, several checkpoints on one color, contour and z scale."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from figures.drawing import style
from figures.page.grids import Grid, Scale, grid, shared_scale

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
        panel.plot(*grid.marks.T, "-o", color="white", linewidth=0.8, markersize=2.5, markeredgecolor="black")
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


# -- a result on its own ---------------------------------------------------------------------------------------------


def write(results: Mapping[str, Any], directory: str | Path, *, formats: Sequence[str] = ("pdf", "png")) -> list[Path]:
    """Draw `Surface` and `Profiles` results with what must be known of them printed underneath.

    Planes: contours and 3-D (linear, and logarithmic where a linear scale shows only the rim), and maps of the gradient
    norm and of |lambda_min / lambda_max| where they were computed. Lines: profiles.
    """
    written: list[Path] = []
    planes = {n: s for n, s in results.items() if s.loss.ndim == 2}
    lines = {n: s for n, s in results.items() if s.loss.ndim == 1}
    facts = {n: {**s.arguments, **s.provenance} for n, s in results.items()}
    for name, figure in (*_planes(planes), *_lines(lines)):
        written += style.save(figure, Path(directory) / name, facts, title=name, formats=formats)
    return written


def _planes(planes: Mapping[str, Any]) -> Iterator[tuple[str, Figure]]:
    if not planes:
        return
    drawn = [grid(s, n if len(planes) > 1 else "") for n, s in planes.items()]
    scale, lines = shared_scale(drawn), notes(planes)
    for log in (False, True) if scale.wide_range else (False,):
        suffix = "-log" if log else ""
        figure = contours(drawn, log=log, scale=scale)
        for panel, one in zip(figure.axes, planes.values(), strict=False):
            mark_checkpoints(panel, one)
        yield f"surface-contours{suffix}", noted(figure, lines)
        yield f"surface-3d{suffix}", noted(surfaces(drawn, log=log, scale=scale), lines)
    for name, one in planes.items():
        prefix = f"{name}-" if len(planes) > 1 else ""
        if one.gradient_norm is not None:
            yield f"{prefix}gradient-norm", noted(_map(one, one.gradient_norm, "gradient norm ‖∇L‖"), lines)
        if one.lambda_min is not None:
            ratio = np.minimum(one.lambda_min, 0) / np.maximum(np.abs(one.lambda_max), 1e-30)
            yield f"{prefix}negative-curvature", noted(_map(one, np.abs(ratio), "|λmin / λmax|, λmin < 0"), lines)


def _lines(lines: Mapping[str, Any]) -> Iterator[tuple[str, Figure]]:
    if lines:
        yield "profile", noted(profile(lines), notes(lines))


def profile(lines: Mapping[str, Any]) -> Figure:
    """One-dimensional profiles: the loss, the loss on further datasets, and the band where there is one."""
    import matplotlib.pyplot as plt

    with style.use():
        figure, panel = plt.subplots(figsize=(style.COLUMN, 2.3), layout="constrained")
        series = 0
        for name, one in lines.items():
            main = name if len(lines) > 1 else _main_label(one)
            panel.plot(one.x, one.loss, color=style.color(series), linestyle=style.line(series), label=main)
            if getattr(one, "low", None) is not None:
                ink = style.color(series)
                panel.fill_between(one.x, one.low, one.high, color=ink, alpha=0.2, linewidth=0, label="5% to 95%")
            series += 1
            for other, loss in zip(getattr(one, "others", ()), _rows(getattr(one, "other_loss", None)), strict=False):
                label = other if len(lines) == 1 else f"{name}, {other}"
                panel.plot(one.x, loss, color=style.color(series), linestyle="--", label=label)
                series += 1
        first = next(iter(lines.values()))
        panel.set(xlabel=grid(first).names[0], ylabel="loss")
        panel.axvline(0, color="#8a9099", linewidth=0.6, zorder=0)
        if len(panel.get_legend_handles_labels()[1]) > 1:
            panel.legend()
    return figure


def _main_label(line: Any) -> str:
    """What the first curve of one line is: the mean of a band, or the split that the others are not."""
    others = getattr(line, "others", ())
    return "mean" if hasattr(line, "low") else "train" if "test" in others else "test" if "train" in others else "loss"


def mark_checkpoints(panel: Axes, surface: Any) -> None:
    """The checkpoints that the plane goes through or along, larger the farther they lie off it."""
    if surface.marks is None:
        return
    x, y = np.asarray(surface.marks).T
    panel.plot(x[:-1], y[:-1], color="white", linewidth=0.8, alpha=0.9 if surface.directions == "trajectory" else 0)
    sizes = 8 + 60 * np.asarray(surface.residuals)[:-1]
    panel.scatter(x[:-1], y[:-1], s=sizes, facecolor="none", edgecolor="white", linewidth=0.9, zorder=3)


def _map(surface: Any, values: np.ndarray, label: str) -> Figure:
    import matplotlib.pyplot as plt

    drawn = grid(surface)
    with style.use():
        figure, panel = plt.subplots(figsize=(style.COLUMN, 2.75), layout="constrained")
        x, y = drawn.axes
        finite = np.where(np.isfinite(values), values, np.nan)
        mappable = panel.pcolormesh(x, y, finite.T, cmap=CMAP, shading="nearest", rasterized=True)
        panel.set(xlabel=drawn.names[0], ylabel=drawn.names[1])
        panel.locator_params(nbins=5)
        panel.set_aspect("equal" if np.isclose(np.ptp(x), np.ptp(y)) else "auto")
        bar = figure.colorbar(mappable, ax=panel, shrink=0.9, aspect=22, pad=0.02)
        bar.outline.set_visible(False)
        bar.set_label(label)
    return figure


def noted(figure: Figure, notes: Sequence[str]) -> Figure:
    """The figure with lines of text under it: it grows by their height, and the drawing keeps its size."""
    width, height = figure.get_size_inches()
    columns = int(width * 20)
    lines = [line for note in notes for line in textwrap.wrap(note, columns, subsequent_indent="   ")]
    if not lines:
        return figure
    foot = 0.12 * len(lines) + 0.06
    figure.set_size_inches(width, height + foot)
    share = foot / (height + foot)
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.set(rect=(0, share, 1, 1 - share))  # type: ignore[call-arg]
    else:
        for panel in figure.axes:
            left, bottom, across, up = panel.get_position().bounds
            panel.set_position((left, share + (1 - share) * bottom, across, (1 - share) * up))
        for text in figure.texts:
            text.set_y(share + (1 - share) * text.get_position()[1])
    figure.text(
        0.02, 0.03 / (height + foot), "\n".join(lines), fontsize=5.5, va="bottom", linespacing=1.35, color="#3a3f45"
    )
    return figure


def notes(results: Mapping[str, Any]) -> list[str]:
    """How the picture was computed, and reasons not to believe it."""
    lines: list[str] = []
    for name, one in results.items():
        prefix = f"{name}: " if len(results) > 1 else ""
        caption = one.caption()
        if caption not in lines:
            lines.append(caption if not lines else prefix + caption)
        lines += [f"! {prefix}{w}" for w in getattr(one, "warnings", ())]
    return lines


def described(name: str, result: Any) -> str:
    """A few lines for the terminal: range, caption, checks."""
    finite = result.loss[np.isfinite(result.loss)]
    span = f"{finite.min():.4g} to {finite.max():.4g}" if finite.size else "nowhere finite"
    lines = [f"{name}: loss {span}, center {result.center_loss:.4g}", f"  {result.caption()}"]
    lines += [f"  {'ok' if c['ok'] else '! '} {c['text']}" for c in getattr(result, "checks", ())]
    return "\n".join(lines)


def _rows(values: Any) -> Any:
    return () if values is None else values
