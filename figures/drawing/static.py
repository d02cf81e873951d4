"""The still pictures of an analysis directory: what the report shows, as PNG and PDF for a paper."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from figures.drawing import contours, style, surface
from figures.drawing.panels import densities as draw_densities
from figures.drawing.panels import ranks, rise, spectrum
from figures.page.curves import curve
from figures.page.grids import grids
from figures.page.rows import alike
from landscape.measures.spectral_density import SpectralDensity

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from figures.page.analysis import Analysis


INSIDE = 4
"""Most entries of a legend within a panel."""


def write(
    analyses: Sequence[Analysis], directory: str | Path, *, formats: Sequence[str] = ("pdf", "png")
) -> list[Path]:
    """Draw everything for which there is data; returns the files written.

    Files: surface-contours, surface-3d (both in every view: -absolute, -log), surface-cuts, sharpness, eigenvalues,
    spectral-density, training.
    """
    written: list[Path] = []
    for name, figure in pictures(analyses):
        written += style.save(figure, Path(directory) / name, facts(analyses), title=name, formats=formats)
    return written


def pictures(analyses: Sequence[Analysis]) -> Iterator[tuple[str, Figure]]:
    """(name, figure) of every picture, drawn one at a time."""
    drawn = grids(analyses)
    planes = [g for g in drawn if g.loss.ndim == 2]
    if planes:
        results = {a.label: a.surface for a in analyses if a.surface is not None}
        notes = surface.notes({label: s for label, s in results.items() if s.loss.ndim == 2})
        yield from contours.pictures(planes, notes)
    if drawn:
        yield "surface-cuts", cuts(analyses)
    for name, make in (("sharpness", sharpness), ("eigenvalues", eigenvalues), ("spectral-density", densities)):
        if (figure := make(analyses)) is not None:
            yield name, figure
    if any(a.history for a in analyses):
        yield "training", training(analyses)


def facts(analyses: Sequence[Analysis]) -> dict[str, Any]:
    """What a caption has to say: samples, BatchNorm policy, dtype, seeds, radius, checkpoints."""
    first = analyses[0]
    caption: dict[str, Any] = {"samples": first.samples, "parameters": first.parameters}
    caption |= {k: first.provenance.get(k) for k in ("batch_norm", "dtype", "split", "sample_seed", "sample_sha256")}
    caption["checkpoints"] = {a.label: a.sha256 for a in analyses}
    caption["arguments"] = {k: dict(r.arguments) for k, r in first.measures.items()}
    if first.surface is not None:
        caption["surface"] = dict(first.surface.arguments)
    return caption


def cuts(analyses: Sequence[Analysis]) -> Figure:
    """The loss along each direction through the center: one panel a direction, every checkpoint on one scale."""
    import matplotlib.pyplot as plt

    drawn = grids(analyses)
    number_of = max(len(g.axes) for g in drawn)
    with style.use():
        figure, panels = plt.subplots(
            1,
            number_of,
            figsize=(style.COLUMN if number_of == 1 else style.PAGE, 2.3),
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
        for i, panel in enumerate(panels[0]):
            ends = {}
            for j, grid in enumerate(drawn):
                if i < len(grid.axes):
                    x, loss = list(grid.cuts())[i]
                    panel.plot(x, loss, color=style.color(j), linestyle=style.line(j))
                    ends[grid.label] = (x[-1], loss[-1], style.color(j))
            panel.set_xlabel(next(g.names[i] for g in drawn if i < len(g.names)))
            if i == number_of - 1 and len(drawn) > 1:
                _labels(figure, panel, ends)
        panels[0, 0].set_ylabel("loss")
    return figure


def sharpness(analyses: Sequence[Analysis]) -> Figure | None:
    """The rise of the loss against the radius: one panel per measure, since their balls have different shapes."""
    import matplotlib.pyplot as plt

    drawn = [one for one in alike(analyses) if any(len(_points(a, one.key)) > 1 for _, a in one.members)]
    if not drawn:
        return None
    with style.use():
        columns = min(len(drawn), 3)
        rows = -(-len(drawn) // columns)
        figure, panels = plt.subplots(
            rows,
            columns,
            figsize=(style.COLUMN if columns == 1 else style.PAGE, 2.2 * rows),
            squeeze=False,
            layout="constrained",
        )
        for panel, one in zip(panels.flat, drawn, strict=False):
            for i, a in one.members:
                rise(panel, _points(a, one.key), i, a.label)
            panel.set(title=one.title, xlabel="radius ρ", ylabel=one.axis)
        for panel in panels.flat[len(drawn) :]:
            panel.set_axis_off()
        _legend(figure, panels.flat[0], len(analyses))
    return figure


def eigenvalues(analyses: Sequence[Analysis]) -> Figure | None:
    """The largest eigenvalues with their error bounds, one panel per measure."""
    import matplotlib.pyplot as plt

    drawn = [one for one in alike(analyses, several=True) if any(_eigenvalues(a, one.key) for _, a in one.members)]
    if not drawn:
        return None
    with style.use():
        figure, panels = plt.subplots(
            1,
            len(drawn),
            figsize=(style.COLUMN if len(drawn) == 1 else style.PAGE, 2.3),
            squeeze=False,
            layout="constrained",
        )
        for panel, one in zip(panels[0], drawn, strict=True):
            most = 1
            for i, a in one.members:
                if not (summary := _eigenvalues(a, one.key)):
                    continue
                values = summary["values"]
                most = max(most, len(values))
                shift = (i - (len(analyses) - 1) / 2) * min(0.12, 0.6 / len(analyses))
                spectrum(panel, values, summary["error_bounds"], i, a.label, shift=shift)
            panel.set_title(one.title)
            ranks(panel, most)
        _legend(figure, panels.flat[0], len(analyses))
    return figure


def densities(analyses: Sequence[Analysis]) -> Figure | None:
    """The spectral density, on a logarithmic axis: the bulk at zero is many orders above the outliers."""
    import matplotlib.pyplot as plt

    measured = [(one.title, [(i, a, a.measures[one.key]) for i, a in one.members]) for one in alike(analyses)]
    drawn = [(t, [(i, a, s) for i, a, s in members if isinstance(s, SpectralDensity)]) for t, members in measured]
    drawn = [(title, members) for title, members in drawn if members]
    if not drawn:
        return None
    with style.use():
        size = (style.COLUMN if len(drawn) == 1 else style.PAGE, 2.3)
        figure, panels = plt.subplots(1, len(drawn), figsize=size, squeeze=False, layout="constrained")
        for panel, (title, members) in zip(panels[0], drawn, strict=True):
            draw_densities(panel, [(i, a.label, s) for i, a, s in members])
            panel.set_title(title)
        _legend(figure, panels[0, 0], len(analyses))
    return figure


def training(analyses: Sequence[Analysis]) -> Figure:
    """Loss and accuracy over the epochs: dashed on the training set, solid on the test set."""
    import matplotlib.pyplot as plt

    with style.use():
        figure, panels = plt.subplots(1, 2, figsize=(style.PAGE, 2.3), layout="constrained")
        for panel, column, scale in zip(panels, ("loss", "accuracy"), (1, 100), strict=True):
            for i, a in enumerate(analyses):
                for split, dash in (("train", "--"), ("test", "-")):
                    rows = [(r["epoch"], r[f"{split}_{column}"]) for r in a.history or () if f"{split}_{column}" in r]
                    name = split if len(analyses) == 1 else a.label if split == "test" else None
                    if rows:
                        epochs, values = np.array(rows, dtype=float).T
                        panel.plot(epochs, scale * values, dash, color=style.color(i), label=name)
            panel.xaxis.get_major_locator().set_params(integer=True)
            panel.set(xlabel="epoch", ylabel="loss" if column == "loss" else "accuracy (%)")
        panels[0].set_title("dashed: training set, solid: test set")
        if len(analyses) > INSIDE:
            _legend(figure, panels[1], len(analyses))
        else:
            panels[1].legend(loc="lower right")
    return figure


def _legend(figure: Figure, panel: Any, entries: int) -> None:
    """Names of several checkpoints: in the panel where they are few, below the drawing where they would cover it."""
    if entries > INSIDE:
        columns = 5 if figure.get_figwidth() > style.COLUMN else 3
        figure.legend(*panel.get_legend_handles_labels(), loc="outside lower center", ncols=columns)
    elif entries > 1:
        panel.legend()


def _points(a: Analysis, key: str) -> list[dict[str, Any]]:
    return curve(a.measures[key].summary()) if key in a.measures else []


def _eigenvalues(a: Analysis, key: str) -> dict[str, Any]:
    summary = a.measures[key].summary() if key in a.measures else {}
    return summary if summary.get("values") and "error_bounds" in summary else {}


def _labels(figure: Figure, panel: Any, ends: dict[str, tuple[float, float, str]]) -> None:
    figure.canvas.draw()
    style.label_lines(panel, ends)
