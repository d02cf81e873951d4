"""One page over any number of analyses: a table to sort, any measure against any other, small surfaces side by side."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from figures.page import frame
from figures.page.answer import answer
from figures.page.differences import paired
from figures.page.report import Section, described
from figures.page.rows import Row, notes, rows
from figures.page.specification import Plot, SharedArrays, error_bars, rounded, text
from figures.page.surface_plots import surface_plots
from landscape import statistics
from landscape.formatting import count, number

if TYPE_CHECKING:
    from figures.page.analysis import Analysis

FEWEST = 5
"""Checkpoints below which a rank correlation says nothing."""


def write(analyses: Sequence[Analysis], path: str | Path, *, command: str = "") -> Path:
    """Write the page, atomically; ratios and differences are taken from the first analysis."""
    return frame.write(render(analyses, command=command), path)


def render(analyses: Sequence[Analysis], *, command: str = "") -> str:
    """The page as text."""
    table = rows(analyses, paired(analyses) if len(analyses) > 1 else None)
    arrays = SharedArrays()
    pictures = [p for p in surface_plots(analyses, arrays) if p.row in ("contour", "scale")]
    contours = [p for p in pictures if p.row == "contour"]
    groups = _groups(analyses)
    plot = _scatter(analyses, table, groups)
    surfaces = Section(
        "surface",
        "Loss surfaces",
        "On one scale of colors. Rise: of the loss above that of each checkpoint's own trained weights (the dot).",
        [row for row in (contours, [p for p in pictures if p.row == "scale"]) if row],
        next((list(p.modes) for p in contours if len(p.modes) > 1), []),
        [],
    )
    return frame.render(
        "joined.html",
        [plot, *pictures],
        arrays=arrays.held,
        summary={"checkpoints": [a.summary() for a in analyses], "command": command},
        table=_numbers(table, analyses),
        scatter=_choices(analyses, table, groups),
        title=f"{count(len(analyses))} checkpoints" if len(analyses) > 1 else analyses[0].label,
        subtitle="",
        tiles=[],
        notes=notes(analyses),
        answer=answer(analyses, table),
        checkpoints=[{"label": a.label} for a in analyses],
        columns=[row.label + (f", {row.setting}" if row.setting else "") for row in table],
        lines=[_line(i, a, table) for i, a in enumerate(analyses)],
        scattered=Section("scatter", "Any measure against any other", "", [[plot]], [], []),
        steps=_steps(analyses),
        sections=[
            Section("summary", "Summary", "", [], [], []),
            Section("scatter", "Any measure against any other", "", [], [], []),
            *([surfaces] if contours else []),
            Section("provenance", "Provenance", "", [], [], []),
        ],
        digests=[(a.label, f"{a.checkpoint}, SHA-256 {a.sha256}") for a in analyses],
        command=command,
    )


def _line(i: int, a: Analysis, table: Sequence[Row]) -> dict[str, Any]:
    return {"label": a.label, "described": described(a.metadata), "cells": [row.cells[i] for row in table]}


def _numbers(table: Sequence[Row], analyses: Sequence[Analysis]) -> list[list[Any]]:
    """A line for each checkpoint, for CSV: numbers in full."""
    lines: list[list[Any]] = [["checkpoint", *(f"{row.key}{part}" for row in table for part in ("", " error"))]]
    for i, a in enumerate(analyses):
        cells = [row.cells[i] for row in table]
        lines.append([a.label, *itertools.chain.from_iterable((c.value, c.error) if c else ("", "") for c in cells)])
    return lines


# -- any measure against any other -------------------------------------------------------------------------------------


def _groups(analyses: Sequence[Analysis]) -> dict[str, list[int]]:
    """Indices of the checkpoints of each method; without methods each one's own."""
    groups: dict[str, list[int]] = {}
    for i, a in enumerate(analyses):
        method = a.metadata.get("method")
        name = str(method.get("name") or a.label) if isinstance(method, Mapping) else a.label
        groups.setdefault(name, []).append(i)
    return groups


def _first_axes(table: Sequence[Row]) -> tuple[int, int]:
    """What is shown first: sharpness against how well the network does on other data, or its loss."""
    keys = [row.key for row in table]
    x = next((i for i, row in enumerate(table) if row.flat), 0)
    return x, next((keys.index(k) for k in ("test_accuracy", "test_loss", "accuracy", "loss") if k in keys), 0)


def _values(row: Row) -> list[float | None]:
    return [None if c is None or c.value is None else 100 * c.value if c.as_percent else c.value for c in row.cells]


def _errors(row: Row) -> list[float | None]:
    return [None if c is None or c.error is None else 100 * c.error if c.as_percent else c.error for c in row.cells]


def _axis(row: Row) -> str:
    percent = any(c.as_percent for c in row.cells if c)
    return text(row.label + (f" ({row.setting})" if row.setting else "") + (" in %" if percent else ""))


def _scatter(analyses: Sequence[Analysis], table: Sequence[Row], groups: Mapping[str, Sequence[int]]) -> Plot:
    """The plot as it is first shown; the page's script changes its axes."""
    x, y = _first_axes(table)
    traces = []
    for n, (name, members) in enumerate(groups.items()):
        columns = {"x": _values(table[x]), "y": _values(table[y])}
        traces.append(
            {
                "type": "scatter", "mode": "markers", "name": text(name), "showlegend": len(groups) > 1,
                "marker": {"size": 9, "color": f"$series{n % 16}"}, "text": [text(analyses[i].label) for i in members],
                **{axis: rounded([values[i] for i in members]) for axis, values in columns.items()},
                **error_bars("error_x", [_errors(table[x])[i] for i in members]),
                **error_bars("error_y", [_errors(table[y])[i] for i in members]),
                "hovertemplate": "<b>%{text}</b><br>%{x:.5g}, %{y:.5g}<extra>%{fullData.name}</extra>",
            }
        )  # fmt: skip
    layout = {
        "xaxis": {"title": {"text": _axis(table[x])}},
        "yaxis": {"title": {"text": _axis(table[y])}, "exponentformat": "power"},
        "margin": {"l": 70, "r": 15, "t": 10, "b": 50},
    }
    caption = _correlation(table[x], table[y])
    return Plot(
        "scatter-plot", "scatter", "Every dot is a checkpoint", caption, {"": {"data": traces, "layout": layout}}
    )


def _choices(analyses: Sequence[Analysis], table: Sequence[Row], groups: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """What the page's script needs to draw any pair of columns."""
    pairs = itertools.combinations(range(len(table)), 2)
    return {
        "columns": [
            {"axis": _axis(row), "values": rounded(_values(row)), "errors": rounded(_errors(row))} for row in table
        ],
        "groups": [list(members) for members in groups.values()],
        "at": [_step(a) for a in analyses],
        "steps": _steps(analyses),
        "first": list(_first_axes(table)),
        "correlations": {f"{i}-{j}": _correlation(table[i], table[j]) for i, j in pairs},
    }


def _correlation(one: Row, other: Row) -> str:
    """Kendall's tau and Spearman's rho over the checkpoints that have both, with bootstrap intervals."""
    both = [
        (a.value, b.value)
        for a, b in zip(one.cells, other.cells, strict=True)
        if a is not None and b is not None and a.value is not None and b.value is not None
    ]
    if len(both) < FEWEST:
        return f"{len(both)} checkpoints have both: too few for a rank correlation."
    x, y = np.array(both).T
    parts = []
    for name, statistic in (("Kendall's τ", statistics.kendall), ("Spearman's ρ", statistics.spearman)):
        estimate = statistics.bootstrap(statistic, x, y, draws=500)
        if math.isfinite(estimate.value):
            known = math.isfinite(estimate.low)
            ends = f" [{number(estimate.low, 2)}, {number(estimate.high, 2)}]" if known else " (no interval)"
            parts.append(f"{name} {number(estimate.value, 2)}{ends}")
    if not parts:
        return "One of them is the same everywhere: no rank correlation."
    return f"{', '.join(parts)} over {len(both)} checkpoints (95%, bootstrap over checkpoints)."


def _step(a: Analysis) -> int | None:
    epoch = a.metadata.get("epoch")
    return epoch if isinstance(epoch, int) and not isinstance(epoch, bool) else None


def _steps(analyses: Sequence[Analysis]) -> list[int]:
    """The epochs of the checkpoints where they differ: what the slider goes through."""
    known: Iterator[int] = (step for a in analyses if (step := _step(a)) is not None)
    steps = sorted(set(known))
    return steps if len(steps) > 1 else []
