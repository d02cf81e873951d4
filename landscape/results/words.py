"""A result in a line and, for notebooks, in a small HTML table; every text is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from typing import Any

from landscape.formatting import duration, number, printable
from landscape.results.cells import cell_of, finite
from landscape.results.result import Result

_FACTS = ("examples", "split", "loss", "batch_norm", "dtype", "device")
"""What of the provenance stands in the table."""
_MOST = 12
"""Rows of numbers that a table shows."""


def line(result: Result) -> str:
    """`Trace(Hessian trace: 12.3 ± 0.4)`: kind, label and number, or what there is instead of one."""
    return printable(f"{type(result).__name__}({': '.join(filter(None, (result.label, headline(result))))})")


def headline(result: Result) -> str:
    """The value with its error; of a result without one its main array, else a few of its numbers."""
    summary = result.summary()
    main = cell_of(summary)
    if main.value is not None:
        radius = finite(summary.get("rho"))
        notes = "; ".join(filter(None, (main.note, "" if radius is None else f"ρ = {number(radius, 3)}")))
        return f"{main.text}{f' ({notes})' if notes else ''}"
    if (shapes := _shapes(result)) and "value" not in summary:
        return shapes[result.main_array(result.named_arrays())]
    return ", ".join(f"{name} {text}" for name, text in list(_numbers(result, summary))[:3])


def table(result: Result) -> str:
    """The line as a heading; below it numbers, arrays, arguments, cost and what the numbers are about."""
    heading = ": ".join(filter(None, (result.label or type(result).__name__, headline(result))))
    summary = result.summary()
    arguments = ", ".join(f"{k} = {_text(v)}" for k, v in result.arguments.items() if v is not None)
    passes = [f"{number(v)} {k.replace('_', ' ')}" for k, v in result.cost.items() if v]
    about = [f"{k.replace('_', ' ')} {_text(result.provenance[k])}" for k in _FACTS if k in result.provenance]
    rows = [
        *_numbers(result, summary),
        *_shapes(result).items(),
        ("arguments", arguments),
        ("cost", ", ".join([*passes, duration(result.seconds)])),
        ("about", ", ".join(about)),
        *(("!", str(warning)) for warning in getattr(result, "warnings", ())),
    ]
    body = "".join(
        f'<tr><th style="text-align:left">{html.escape(name)}</th>'
        f'<td style="text-align:left">{html.escape(text)}</td></tr>'
        for name, text in rows
        if text
    )
    return f"<div><strong>{html.escape(heading)}</strong><table>{body}</table></div>"


def _numbers(result: Result, summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Names and texts of the numbers of a summary, without those that were asked for."""
    shown = [
        (k.replace("_", " "), number(value))
        for k, v in summary.items()
        if k not in (*result.arguments, "value", "seconds") and (value := finite(v)) is not None
    ]
    yield from shown[:_MOST]


def _shapes(result: Result) -> dict[str, str]:
    """Name -> "loss (41, 41) over x, y" of every array that is more than coordinates."""
    arrays = result.named_arrays()
    return {
        name: f"{name} {tuple(facts['shape'])} over {', '.join(facts['axes'])}"
        for name, facts in arrays.shapes().items()
        if facts["axes"] not in ((), (name,))
    }


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"({', '.join(map(_text, value))})"
    return number(value) if isinstance(value, float) else str(value)
