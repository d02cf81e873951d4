"""One result in one panel: what the pictures of an analysis and `result.plot()` share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from figures.drawing import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from landscape.measures.spectral_density import SpectralDensity


def rise(panel: Axes, points: Sequence[Mapping[str, Any]], series: int = 0, label: str | None = None) -> None:
    """A measure over its radii with its band; a single radius as a dot with a bar."""
    rho, value = ([p[k] for p in points] for k in ("rho", "value"))
    half = np.array([p["error"] or 0 for p in points])
    ink = style.color(series)
    panel.plot(rho, value, marker="o", color=ink, linestyle=style.line(series), label=label)
    if half.any() and len(points) > 1:
        panel.fill_between(rho, value - half, value + half, color=ink, alpha=0.2, linewidth=0)
    elif half.any():
        panel.errorbar(rho, value, half, fmt="none", color=ink)
    panel.set_xlim(left=0)


def spectrum(
    panel: Axes, values: Any, bounds: Any, series: int = 0, label: str | None = None, *, shift: float = 0.0
) -> None:
    """Eigenvalues by rank with their error bounds."""
    panel.errorbar(
        np.arange(1, len(values) + 1) + shift, values, yerr=bounds,
        fmt="oD"[series // len(style.PALETTE) % 2], color=style.color(series), label=label,
    )  # fmt: skip


def ranks(panel: Axes, most: int) -> None:
    """The axes below eigenvalues by rank."""
    panel.set(xlabel="rank", ylabel="eigenvalue λ", xlim=(0.5, most + 0.5))
    panel.set_xticks(range(1, most + 1) if most <= 12 else range(1, most + 1, most // 6))
    low, high = panel.dataLim.intervaly
    margin = 0.05 * (max(0, high) - min(0, low))  # of equal values, or a single one, matplotlib leaves next to none
    if low <= high:  # not where all are nan
        panel.set_ylim(min(0, low - margin), high + margin)


def densities(panel: Axes, measured: Sequence[tuple[int, str | None, SpectralDensity]]) -> None:
    """Spectral densities on a logarithmic axis, (series, label, result): zero is many orders above the outliers."""
    for series, label, s in measured:
        panel.fill_between(s.axis, s.low, s.high, color=style.color(series), alpha=0.2, linewidth=0)
        panel.plot(s.axis, s.density, color=style.color(series), linestyle=style.line(series), label=label)
    top = max(float(np.nanmax(s.density)) for _, _, s in measured)
    panel.set(yscale="log", ylim=(top * 1e-8, top * 3), xlabel="eigenvalue λ", ylabel="density")


def bars(panel: Axes, names: Sequence[str], values: Any, errors: Any = None) -> None:
    """A horizontal bar per name, the first on top; names of many layers are thinned out."""
    places = np.arange(len(names))
    panel.barh(places, values, xerr=errors, color=style.color(0), height=0.7)
    step = -(-len(names) // 24)
    panel.set_yticks(places[::step], [_short(n) for n in names[::step]])
    panel.set_ylim(len(names) - 0.5, -0.5)
    panel.axvline(0, color="#8a9099", linewidth=0.6)


def _short(name: str, most: int = 26) -> str:
    """The end of a long name, which tells layers apart."""
    return name if len(name) <= most else "…" + name[1 - most :]
