"""One look for every figure: the style sheet, the palette, two widths of a two-column paper, saving with facts."""

from __future__ import annotations

import contextlib
import io
import json
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.errors import unknown
from landscape.files import write_bytes
from landscape.results.result import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

VENUES = {
    "icml": (3.25, 6.75),
    "cvpr": (3.25, 6.875),
    "ieee": (3.5, 7.16),
    "neurips": (2.7, 5.5),
    "iclr": (2.7, 5.5),
    "jmlr": (2.95, 6.0),
    "tmlr": (3.2, 6.5),
}
"""Widths in inches of a column and of the text; where the text is one column, half of it stands for the column."""
COLUMN, PAGE = 3.3, 6.9
"""Widths in inches of one column and of the page; see `fitted`."""

# Okabe and Ito (2008): told apart with every common color-vision deficiency. Yellow comes last: it is faint on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
LINES = ("-", "--", "-.", ":", (0, (3, 1, 1, 1, 1, 1)))


@contextlib.contextmanager
def fitted(venue: str) -> Iterator[None]:
    """Context in which figures have a venue's widths, so that LaTeX need not scale: fonts keep their 7 points.

    Raises:
        InputError: no such venue.
    """
    global COLUMN, PAGE
    if venue not in VENUES:
        raise unknown("venue", venue, VENUES)
    before = COLUMN, PAGE
    COLUMN, PAGE = VENUES[venue]
    try:
        yield
    finally:
        COLUMN, PAGE = before


def color(index: int) -> str:
    """Color of the series `index`: the palette, then its darker shades; `line` tells the rounds apart too."""
    base = PALETTE[index % len(PALETTE)]
    if index // len(PALETTE) % 2 == 0:
        return base
    if base == "#000000":
        return "#808080"  # black has no darker shade
    return "#" + "".join(f"{round(0.55 * int(base[i : i + 2], 16)):02X}" for i in (1, 3, 5))


def line(index: int) -> Any:
    """Line style of the series `index`: changes with each round through the palette."""
    return LINES[index // len(PALETTE) % len(LINES)]


def use() -> AbstractContextManager:
    """`sheet`, for figures that become files: drawing needs no display."""
    import matplotlib

    matplotlib.use("Agg", force=False)
    return sheet()


def sheet() -> AbstractContextManager:
    """Context in which figures are drawn in the project's style."""
    from matplotlib import style

    return style.context(Path(__file__).with_name("style.mplstyle"))


def save(
    figure: Figure,
    stem: str | Path,
    facts: Mapping[str, Any],
    *,
    title: str = "",
    formats: Iterable[str] = ("pdf", "png"),
) -> list[Path]:
    """Write `stem`.pdf, .png, ... with the caption's facts in the metadata, and close the figure.

    The facts (samples, radius, BatchNorm policy, seeds, ...) are one JSON object: under `Keywords` in PDF and
    `Description` in PNG and SVG. The files carry no date, so that the same numbers give the same bytes.

    Args:
        figure: what to write.
        stem: path without suffix; its directory is made where missing.
        facts: what a caption has to say.
        title: the files' title; the stem's name where empty.
        formats: pdf, png, svg.

    Returns:
        The paths written.
    """
    import matplotlib.pyplot as plt

    stem = Path(stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(plain(facts), ensure_ascii=True, sort_keys=True)
    title = title or stem.name
    metadata: dict[str, dict[str, Any]] = {
        "pdf": {"Title": title, "Keywords": text, "CreationDate": None, "Creator": "landscape"},
        "png": {"Title": title, "Description": text, "Software": "landscape"},
        "svg": {"Title": title, "Description": text, "Date": None, "Creator": "landscape"},
    }
    paths = []
    with use():
        for suffix in formats:
            # with_name, not with_suffix: a stem such as "rho-0.05" would lose its last digits.
            path = stem.with_name(f"{stem.name}.{suffix}")
            picture = io.BytesIO()
            figure.savefig(picture, format=suffix, metadata=metadata[suffix])
            write_bytes(path, picture.getvalue())
            paths.append(path)
            # The layout is found once: it is most of the time, and every format shall have the same.
            figure.set_layout_engine("none")
    plt.close(figure)
    return paths


def footnote(figure: Figure, *notes: str) -> Figure:
    """Write small text below the drawing, which keeps its size: the figure grows by the lines that are needed."""
    size, line_height = 5.0, 0.085
    width, height = figure.get_size_inches()
    columns = int((width - 0.1) / (0.6 * size / 72))  # 0.6 em: a wide letter's share
    lines = [
        line
        for note in notes
        for line in textwrap.wrap(note, columns, subsequent_indent="   " if len(notes) > 1 else "")
    ]
    if not lines:
        return figure
    room = line_height * len(lines) + 0.03
    # The layout is found without the note: what it puts outside of the panels (a legend) would lie on the note.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    figure.set_figheight(height + room)
    share = room / (height + room)
    for axes in figure.axes:
        x, y, w, h = axes.get_position(original=True).bounds
        axes.set_position((x, share + y * (1 - share), w, h * (1 - share)))
    for legend in figure.legends:
        legend.set_bbox_to_anchor((0, share, 1, 1 - share), transform=figure.transFigure)
    for text in figure.texts:
        text.set_y(share + text.get_position()[1] * (1 - share))
    look: dict[str, Any] = {"ha": "left", "va": "bottom", "fontsize": size, "color": "#555555", "linespacing": 1.1}
    look["parse_math"] = False  # names of files may hold dollar signs
    figure.text(0.03 / width, 0.02 / (height + room), "\n".join(lines), **look).set_gid("footnote")
    return figure


def whole_epochs(*panels: Axes) -> None:
    """Ticks at whole numbers."""
    from matplotlib.ticker import MaxNLocator

    for axes in panels:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def few_log_ticks(panel: Axes, which: str = "x") -> None:
    """Two to four plain numbers on a logarithmic axis that spans little more than a power of ten, or less."""
    import numpy as np
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axis = panel.xaxis if which == "x" else panel.yaxis
    low, high = axis.get_view_interval()
    powers = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    for steps in ((1,), (1, 3), (1, 3, 6), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)):
        ticks = [t for t in np.outer(powers, steps).ravel() if low <= t <= high]
        if len(ticks) >= 2:
            break
    else:
        ticks = list(np.geomspace(low, high, 5)[1:4:2])
    axis.set_major_locator(FixedLocator(ticks[:: -(-len(ticks) // 4)]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axis.set_minor_locator(NullLocator())


def label_lines(axes: Axes, labels: Mapping[str, tuple[float, float, str]], *, gap: float = 9.0) -> None:
    """Write each label in its color to the right of its line's end, pushed apart where they would overlap.

    Where one was pushed away, thin lines lead from all ends to their labels.

    Args:
        axes: the panel; its limits must be final.
        labels: text -> (x, y, color) of the line's end, in data coordinates.
        gap: least distance between two labels in points.
    """
    to_points = 72.0 / axes.figure.dpi
    ends = {t: float((axes.transData.transform((x, y)) * to_points)[1]) for t, (x, y, _) in labels.items()}
    order = sorted(ends, key=lambda t: ends[t])
    # A stack of many labels stays above the axis and its ticks.
    floor = float(axes.bbox.y0) * to_points + gap / 2
    heights = [max(h, floor + i * gap) for i, h in enumerate(_apart([ends[t] for t in order], gap))]
    led = any(abs(height - ends[t]) > gap / 3 for t, height in zip(order, heights, strict=True))
    for text, height in zip(order, heights, strict=True):
        x, y, ink = labels[text]
        lead = {"arrowstyle": "-", "color": ink, "linewidth": 0.5, "shrinkA": 1, "shrinkB": 1, "relpos": (0, 0.5)}
        axes.annotate(
            text,
            (x, y),
            xytext=(13 if led else 4, height - ends[text]),
            textcoords="offset points",
            color=ink,
            fontsize=7,
            va="center",
            annotation_clip=False,
            arrowprops=lead if led else None,
        )


def _apart(heights: Sequence[float], gap: float) -> list[float]:
    """The nearest heights (least squares) of which each is at least `gap` above the one before; they come sorted."""
    blocks: list[list[float]] = []  # of heights less their place times the gap: each block gets its mean
    for i, height in enumerate(heights):
        blocks.append([height - i * gap])
        while len(blocks) > 1 and _mean(blocks[-2]) > _mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    levels = [_mean(block) for block in blocks for _ in block]
    return [level + i * gap for i, level in enumerate(levels)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
