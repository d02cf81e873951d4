"""Spectra and per-layer values out of results, whatever measure they come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from figures.page.rows import finite


@dataclass(frozen=True)
class Spectrum:
    """A density over eigenvalues (linear), and over log10 |eigenvalue| split by sign.

    `low` and `high` are its 10% and 90% quantiles over the probes, `width` that of the kernel.
    """

    x: np.ndarray
    density: np.ndarray
    low: np.ndarray
    high: np.ndarray
    width: float
    log_x: np.ndarray
    log_positive: np.ndarray
    log_negative: np.ndarray


def spectrum(result: Any) -> Spectrum | None:
    """What is drawn of a spectral density; None for any other result."""
    names = ("axis", "density", "low", "high", "width", "log_axis", "log_positive", "log_negative")
    if not all(hasattr(result, n) for n in names):
        return None
    values = (getattr(result, n) for n in names)
    return Spectrum(*(v if isinstance(v, float) else np.asarray(v, dtype=float) for v in values))


def layers(summary: dict[str, Any]) -> dict[str, tuple[float, float | None]]:
    """Layer -> (value, error) of a measure that was taken layer by layer; empty for any other.

    Read from the summary's `layers`: a mapping of names to numbers or to objects with `value` or `values`.
    """
    held = summary.get("layers")
    if not isinstance(held, dict):
        return {}
    found = {}
    for name, entry in held.items():
        if isinstance(entry, dict):
            values, bounds = entry.get("values"), entry.get("error_bounds")
            value = finite(entry.get("value") if "value" in entry else values[0] if values else None)
            error = finite(entry.get("stderr") if "stderr" in entry else bounds[0] if bounds else None)
        else:
            value, error = finite(entry), None
        if value is not None:
            found[str(name)] = (value, error)
    return found
