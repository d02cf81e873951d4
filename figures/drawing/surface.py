"""A surface, several or their profiles on paper, with what must be known of them underneath."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from figures.drawing import style
from figures.drawing.contours import CMAP, pictures
from figures.page.grids import Grid, grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAPS = {
    "Gradient norm": ("gradient-norm", "gradient norm ‖∇L‖"),
    "Negative against positive curvature": ("negative-curvature", "|λmin / λmax|, λmin < 0"),
}
"""What a grid holds besides the loss: name of the file, label of the colors."""


def write(results: Mapping[str, Any], directory: str | Path, *, formats: Sequence[str] = ("pdf", "png")) -> list[Path]:
    """Draw `Surface` and `Profiles` results with what must be known of them printed underneath.

    Planes: contours and 3-D in every view (several as rises above each one's center; -absolute; -log where the loss is
    positive), and maps of the gradient norm and of |lambda_min / lambda_max| where they were computed. Lines: profiles.
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
    lines = notes(planes)
    for name, figure in pictures(drawn, lines):
        if name.startswith("surface-contours"):
            for panel, one in zip(figure.axes, planes.values(), strict=False):
                mark_checkpoints(panel, one)
        yield name, figure
    for plane in drawn:
        for title, values in plane.maps.items():
            name, label = MAPS[title]
            prefix = f"{plane.label}-" if plane.label else ""
            yield f"{prefix}{name}", style.footnote(_map(plane, values, label), *lines)


def _lines(lines: Mapping[str, Any]) -> Iterator[tuple[str, Figure]]:
    if lines:
        yield "profile", style.footnote(profile(lines), *notes(lines))


def profile(lines: Mapping[str, Any]) -> Figure:
    """One-dimensional profiles: the loss, the loss on further datasets, and the band where there is one."""
    import matplotlib.pyplot as plt

    with style.use():
        figure, panel = plt.subplots(figsize=(style.COLUMN, 2.3), layout="constrained")
        series = 0
        for name, one in lines.items():
            series = draw_line(panel, one, name if len(lines) > 1 else "", series)
    return figure


def draw_line(panel: Axes, line: Any, name: str = "", series: int = 0) -> int:
    """One profile into a panel, its curves from the color `series` on; returns the next color."""
    ink = style.color(series)
    panel.plot(line.x, line.loss, color=ink, linestyle=style.line(series), label=name or _main_label(line))
    if getattr(line, "low", None) is not None:
        panel.fill_between(line.x, line.low, line.high, color=ink, alpha=0.2, linewidth=0, label="5% to 95%")
    others = list(zip(getattr(line, "others", ()), _rows(getattr(line, "other_loss", None)), strict=False))
    for i, (other, loss) in enumerate(others, series + 1):
        label = f"{name}, {other}" if name else other
        panel.plot(line.x, loss, color=style.color(i), linestyle="--", label=label)
    if series == 0:
        panel.set(xlabel=grid(line).names[0], ylabel="loss")
        panel.axvline(0, color="#8a9099", linewidth=0.6, zorder=0)
    if len(panel.get_legend_handles_labels()[1]) > 1:
        panel.legend()
    return series + 1 + len(others)


def _main_label(line: Any) -> str:
    """What the first curve of one line is: the mean of a band, or the split that the others are not."""
    others = getattr(line, "others", ())
    return "mean" if hasattr(line, "low") else "train" if "test" in others else "test" if "train" in others else "loss"


def mark_checkpoints(panel: Axes, surface: Any) -> None:
    """The checkpoints that the plane goes through or along, larger the farther they lie off it."""
    if surface.marks is None:
        return
    if "task_vectors" in surface.facts:
        _merging(panel, surface)
    x, y = np.asarray(surface.marks).T
    panel.plot(x[:-1], y[:-1], color="white", linewidth=0.8, alpha=0.9 if surface.directions == "trajectory" else 0)
    sizes = 8 + 60 * np.asarray(surface.residuals)[:-1]
    panel.scatter(x[:-1], y[:-1], s=sizes, facecolor="none", edgecolor="white", linewidth=0.9, zorder=3)


_COEFFICIENTS = (0.0, 0.25, 0.5, 0.75, 1.0)


def _merging(panel: Axes, surface: Any) -> None:
    """Lines of equal merging coefficients, w0 + a (w1 - w0) + b (w2 - w0), means of w1 and w2, and the lowest loss."""
    first, second = np.array(surface.facts["task_vectors"])
    look: dict[str, Any] = {"color": "white", "linewidth": 0.5, "alpha": 0.7, "scalex": False, "scaley": False}
    for c in _COEFFICIENTS:
        panel.plot(*np.array([c * first, c * first + second]).T, **look)
        panel.plot(*np.array([c * second, first + c * second]).T, **look)
    panel.plot(*np.array([first, second]).T, linestyle="--", **{**look, "linewidth": 0.9, "alpha": 1.0})
    for i, mark in enumerate(np.asarray(surface.marks)[:-1], 1):
        name, outline = f"$w_{{{i}}}$", {"facecolor": "black", "alpha": 0.35, "edgecolor": "none", "pad": 0.6}
        panel.annotate(name, mark, xytext=(4, 4), textcoords="offset points", color="white", fontsize=7, bbox=outline)
    if (finite := np.isfinite(surface.loss)).any():
        lowest = np.unravel_index(np.argmin(np.where(finite, surface.loss, np.inf)), surface.loss.shape)
        place = [axis[i] for axis, i in zip(surface.axes, lowest, strict=True)]
        panel.plot(*place, "*", color="white", markersize=7, markeredgecolor="black", zorder=5)


def _map(plane: Grid, values: np.ndarray, label: str) -> Figure:
    import matplotlib.pyplot as plt

    with style.use():
        figure, panel = plt.subplots(figsize=(style.COLUMN, 2.75), layout="constrained")
        x, y = plane.axes
        finite = np.where(np.isfinite(values), values, np.nan)
        mappable = panel.pcolormesh(x, y, finite.T, cmap=CMAP, shading="nearest", rasterized=True)
        panel.set(xlabel=plane.names[0], ylabel=plane.names[1])
        panel.locator_params(nbins=5)
        panel.set_aspect("equal" if np.isclose(np.ptp(x), np.ptp(y)) else "auto")
        bar = figure.colorbar(mappable, ax=panel, shrink=0.9, aspect=22, pad=0.02)
        bar.outline.set_visible(False)
        bar.set_label(label)
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


def _rows(values: Any) -> Any:
    return () if values is None else values
