"""The report's interactive plots as plain plotly specifications: data and layout, no color theme, no plotly import.

Colors are names that the page resolves for its theme: "$series0", "$band0", "$text", "$muted", "$grid". Long arrays are
kept once and referred to as "@name". A plot with several `modes` (linear, log) holds a layout and data for each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Scene:
    """A 3-D picture: of whom, with what title, caption and modes."""

    label: str
    title: str
    caption: str
    modes: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Plot:
    """One plot: `modes` maps the name of a choice (or "") to {"data", "layout"}.

    Attributes:
        id: of the element.
        section: heading under which it stands.
        title: shown above it.
        caption: shown below it: what was measured and how.
        modes: mode -> specification; the first is drawn first.
        group: plots of one group switch modes (and cameras) together.
        wide: takes the whole row.
        height: in pixels.
        row: plots of one row stand side by side where several checkpoints are compared.
        three_d: can be turned.
        shape: width over height where that is to be kept; `height` is ignored then.
        choices: what the picture can show instead, where a page cannot draw all at once.
    """

    id: str
    section: str
    title: str
    caption: str
    modes: dict[str, dict[str, Any]]
    group: str = ""
    wide: bool = False
    height: int = 340
    row: str = ""
    three_d: bool = False
    shape: str = ""
    choices: Sequence[Scene] = ()


@dataclass
class SharedArrays:
    """Arrays by name, stored once for all plots."""

    held: dict[str, Any] = field(default_factory=dict)

    def put(self, name: str, values: Any, digits: int = 6) -> str:
        """Keep `values` (nan and inf become null) and return the reference to them."""
        self.held[name] = rounded(np.asarray(values, dtype=float), digits)
        return "@" + name


def text(value: Any) -> str:
    """A string from a checkpoint as plotly shows it literally: plotly reads tags, entities and templates in labels."""
    escaped = str(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return escaped.replace("%{", "%\u200b{").replace("$", "\uff04")


def linear_log(traces: list[dict[str, Any]], x: str, y: str, *, log_x: bool = False) -> dict[str, dict[str, Any]]:
    """The same traces on a linear and on a logarithmic axis (both axes where `log_x`)."""
    modes = {}
    for mode in ("linear", "log"):
        kind = {"type": mode}
        layout: dict[str, Any] = {
            "xaxis": {"title": {"text": x}, **(kind if log_x else {})},
            "yaxis": {"title": {"text": y}, **kind, "exponentformat": "power"},
            "margin": {"l": 70, "r": 15, "t": 10, "b": 50},
        }
        if mode == "linear":
            layout["yaxis"]["rangemode"] = "tozero"
        modes[mode] = {"data": traces, "layout": layout}
    return modes


def error_bars(axis: str, half: Sequence[float | None]) -> dict[str, Any]:
    """Error bars of those half widths ("error_x" or "error_y"); none where nothing is known of any error."""
    return {axis: {"type": "data", "array": rounded([h or 0 for h in half])}} if any(half) else {}


def band(i: int, x: Any, low: Any, high: Any) -> list[dict[str, Any]]:
    """The area between two curves (values, or references to arrays) in the faint color of series `i`."""
    x, low, high = (v if isinstance(v, str) else rounded(v) for v in (x, low, high))
    common = {
        "type": "scatter", "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False, "x": x,
    }  # fmt: skip
    return [{**common, "y": low}, {**common, "y": high, "fill": "tonexty", "fillcolor": f"$band{i}"}]


def log10(values: np.ndarray) -> np.ndarray:
    """log10 without warnings: what is not positive becomes nan or -inf, which `rounded` makes None."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log10(values)


def rounded(values: Any, digits: int = 6) -> Any:
    """Nested lists of floats with that many significant digits; what is not finite becomes None."""
    values = np.asarray([np.nan if v is None else v for v in values], dtype=float)
    if values.ndim > 1:
        return [rounded(row, digits) for row in values]
    return [float(f"{v:.{digits}g}") if math.isfinite(v) else None for v in values]


def slug(key: str) -> str:
    """A measure's key as part of an element's id."""
    return "".join(c if c.isalnum() else "-" for c in key)
