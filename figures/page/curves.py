"""Points of a measure over its radii."""

from __future__ import annotations

from typing import Any

from landscape.results.cells import error, finite


def curve(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Points of sharpness against rho, by radius: {"rho", "value", "error"}; one point where one radius was asked."""
    entries = summary.get("curve") or [summary]
    points = [
        {"rho": finite(e.get("rho")), "value": finite(e.get("value")), "error": error(e)[0]}
        for e in entries
        if isinstance(e, dict)
    ]
    return sorted((p for p in points if None not in (p["rho"], p["value"])), key=lambda p: p["rho"])
