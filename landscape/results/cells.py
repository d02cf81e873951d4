"""A number with what is known of its error, read from the summary of a result."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from landscape.formatting import beside, number, percent, rounded_up
from landscape.statistics import Z

SPREAD = 0.05
"""Relative difference between ascents in one ball from which on a worst case carries a caution."""
INTERVAL, BOUND, EXACT = "95% interval", "error bound", "exact"


@dataclass(frozen=True)
class Cell:
    """A number with what is known of its error.

    Attributes:
        value: the number; None where it is missing or not finite.
        error: half width of `kind`, or None.
        kind: INTERVAL (from a standard error), BOUND (guaranteed), EXACT (to rounding), or "".
        note: more about it: other values, whether the solver converged.
        as_percent: it is a fraction to be shown in percent.
    """

    value: float | None
    error: float | None = None
    kind: str = ""
    note: str = ""
    as_percent: bool = False

    @property
    def clear(self) -> bool:
        """Whether its interval or bound leaves out zero."""
        return self.value is not None and self.error is not None and abs(self.value) > self.error

    @property
    def text(self) -> str:
        """The cell in one line."""
        return f"{self.short} ± {self.error_text}" if self.error_text else self.short

    @property
    def short(self) -> str:
        """The number alone, to the digits that its error leaves (at most five)."""
        if self.as_percent:
            return percent(self.value)
        return beside(self.value, self.error)

    @property
    def error_text(self) -> str:
        """The half width alone, rounded up."""
        if self.error is None or self.kind == EXACT:
            return ""
        return f"{100 * self.error:.2f}%" if self.as_percent else number(rounded_up(self.error), 2, zeros=True)


def finite(value: Any) -> float | None:
    """A number that can be shown and stored in JSON, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def error(summary: Mapping[str, Any]) -> tuple[float | None, str]:
    """Half width and kind of the error that a summary states for its `value`."""
    if summary.get("exact"):
        return 0.0, EXACT
    if "low" in summary:  # of few draws the value is not its middle: the longer side holds both
        ends = [finite(summary.get(name)) for name in ("low", "value", "high")]
        sides = [b - a for a, b in itertools.pairwise(ends) if a is not None and b is not None]
        return (max(sides), INTERVAL) if len(sides) == 2 else (None, "")
    if (stderr := finite(summary.get("stderr"))) is not None:
        return Z * stderr, INTERVAL if stderr else EXACT
    for name in ("error_bound", "error"):
        if (bound := finite(summary.get(name))) is not None:
            return bound, BOUND
    return None, ""


def cell_of(summary: Mapping[str, Any]) -> Cell:
    """The `value` of a summary, or the first of its `values`, with its error and what else is known of it."""
    value = finite(summary.get("value"))
    values = summary.get("values")
    if value is None and isinstance(values, Sequence) and values:
        bounds = summary.get("error_bounds") or []
        rest = ", ".join(number(finite(v), 4) for v in values[1:6])
        notes = [f"then {rest}" if rest else "", "" if summary.get("converged", True) else "not converged"]
        bound = finite(bounds[0]) if bounds else None
        return Cell(finite(values[0]), bound, BOUND if bound is not None else "", "; ".join(n for n in notes if n))
    half, kind = error(summary)
    worst, spread = finite(summary.get("worst_case")), finite(summary.get("restart_spread"))
    notes = [
        "" if worst is None or worst == value else f"worst case {number(worst)}",
        "" if spread is None or spread <= SPREAD else f"its ascents differ by {spread:.0%}: there may be a higher one",
        "" if summary.get("converged", True) else "not converged",
        f"not to be trusted: {refused}" if (refused := summary.get("refused")) else "",
    ]
    return Cell(value, half, kind, "; ".join(n for n in notes if n))
