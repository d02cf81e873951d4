"""Every plot of the report: what is drawn from which results."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from figures.page.curves import curve
from figures.page.rows import alike
from figures.page.specification import Plot, SharedArrays, band, error_bars, linear_log, rounded, slug, text
from figures.page.surface_plots import surface_plots
from landscape.formatting import number
from landscape.measures.spectral_density import SpectralDensity
from landscape.results.cells import finite

if TYPE_CHECKING:
    from figures.page.analysis import Analysis


def plots(analyses: Sequence[Analysis]) -> tuple[list[Plot], dict[str, Any]]:
    """Every plot for which there is data, and the arrays that they share."""
    arrays = SharedArrays()
    drawn = [
        *surface_plots(analyses, arrays),
        *_sharpness(analyses),
        *_eigenvalues(analyses),
        *_densities(analyses, arrays),
        *_layers(analyses),
        *_training(analyses),
    ]
    return drawn, arrays.held


def _sharpness(analyses: Sequence[Analysis]) -> Iterator[Plot]:
    """One panel per measure: their balls differ, so no two measures share an axis of radii."""
    for key, name, title, axis, members in alike(analyses):
        curves = [(i, a, curve(a.measures[key].summary())) for i, a in members]
        if not any(len(c) > 1 for _, _, c in curves):
            continue
        traces: list[dict[str, Any]] = []
        for i, a, points in curves:
            rho = [p["rho"] for p in points]
            value = [p["value"] for p in points]
            half = [p["error"] for p in points]
            if any(h is not None for h in half):
                traces += band(
                    i,
                    rho,
                    [v - (h or 0) for v, h in zip(value, half, strict=True)],
                    [v + (h or 0) for v, h in zip(value, half, strict=True)],
                )
            traces.append(
                {
                    "type": "scatter", "mode": "lines+markers", "x": rounded(rho), "y": rounded(value),
                    "name": text(a.label), "line": {"color": f"$series{i}"}, "marker": {"size": 7},
                    "showlegend": len(curves) > 1,
                    "hovertemplate": "ρ = %{x:.4g}: <b>%{y:.4g}</b><extra>%{fullData.name}</extra>",
                }
            )  # fmt: skip
        note = " The band is a 95% interval." if any("fill" in t for t in traces) else ""
        yield Plot(
            f"sharpness-{slug(name)}", "sharpness", title,
            f"{axis[:1].upper()}{axis[1:]} against the radius ρ of the ball.{note}",
            linear_log(traces, "radius ρ", axis, log_x=True), group=f"sharpness-{slug(name)}",
        )  # fmt: skip


def _eigenvalues(analyses: Sequence[Analysis]) -> Iterator[Plot]:
    for key, name, title, _, members in alike(analyses, several=True):
        held = [(i, a, a.measures[key].summary()) for i, a in members]
        held = [(i, a, s) for i, a, s in held if s.get("values") and "error_bounds" in s]
        traces = []
        for i, a, summary in held:
            values = summary["values"]
            rank = np.arange(1, len(values) + 1) + (i - (len(analyses) - 1) / 2) * min(0.12, 0.6 / len(analyses))
            traces.append(
                {
                    "type": "scatter", "mode": "markers", "x": rounded(rank), "y": rounded(values),
                    "error_y": {
                        "type": "data", "array": rounded(summary["error_bounds"]), "thickness": 1.5, "width": 5,
                        "color": f"$series{i}",
                    },
                    "customdata": [number(b, 2) for b in summary["error_bounds"]],
                    "name": text(a.label), "marker": {"size": 9, "color": f"$series{i}"},
                    "showlegend": len(held) > 1,
                    "hovertemplate": "<b>%{y:.6g}</b> ± %{customdata}<extra>%{fullData.name}</extra>",
                }
            )  # fmt: skip
        if traces:
            modes = linear_log(traces, "rank", "eigenvalue λ")
            for mode in modes.values():
                mode["layout"]["xaxis"].update(tickmode="linear", tick0=1, dtick=1, showgrid=False)
            yield Plot(
                f"eigenvalues-{slug(name)}", "curvature", title,
                "Bars are error bounds: an eigenvalue lies within each. Invisible bars are smaller than the dots.",
                modes, group=f"eigenvalues-{slug(name)}",
            )  # fmt: skip


def _densities(analyses: Sequence[Analysis], arrays: SharedArrays) -> Iterator[Plot]:
    for key, label, title, _, members in alike(analyses):
        measured = [(i, a, a.measures[key]) for i, a in members]
        spectra = [(i, a, s) for i, a, s in measured if isinstance(s, SpectralDensity)]
        if not spectra:
            continue
        name = slug(label)
        traces, signs = [], []
        for i, a, s in spectra:
            curves = {"x": s.axis, "low": s.low, "high": s.high}
            x, low, high = (arrays.put(f"{part}-{name}-{i}", values) for part, values in curves.items())
            if len(spectra) == 1:
                traces += band(i, x, low, high)
            traces.append(_line(i, a.label, x, arrays.put(f"density-{name}-{i}", s.density), len(spectra) > 1))
            for sign, dash, values in (("λ > 0", "solid", s.log_positive), ("λ < 0", "dash", s.log_negative)):
                line = sign if len(spectra) == 1 else f"{a.label}, {sign}"
                y = arrays.put(f"{dash}-{name}-{i}", values)
                size = arrays.put(f"size-{name}-{i}", 10.0**s.log_axis)
                signs.append(_line(i, line, size, y, True, dash))
        modes = linear_log(traces, "eigenvalue λ", "density (1/λ)")
        top = max(float(np.nanmax(s.density)) for _, _, s in spectra)
        modes["log"]["layout"]["yaxis"]["range"] = [math.log10(top) - 8, math.log10(top) + 0.3]
        widths = ", ".join(dict.fromkeys(number(s.width, 2) for _, _, s in spectra))
        probes = " The band holds 80% of the random probes." if len(spectra) == 1 else ""
        yield Plot(
            f"spectrum-{name}", "curvature", title,
            f"Share of the directions that have a curvature, smoothed by a Gaussian of width {widths}; area 1.{probes}",
            {"log": modes["log"], "linear": modes["linear"]}, group=f"spectrum-{name}", row=f"spectrum-{name}",
        )  # fmt: skip
        modes = linear_log(signs, "size of the eigenvalue |λ|", "density (a decade)", log_x=True)
        log_x = modes["linear"]["layout"]["xaxis"] | {"type": "log", "exponentformat": "power", "dtick": 2}
        modes["linear"]["layout"]["xaxis"] = log_x
        yield Plot(
            f"spectrum-decades-{name}", "curvature", f"{title} by size",
            "The same over powers of ten, positive and negative curvatures apart. The leftmost point holds the zeros.",
            {"linear": modes["linear"]}, row=f"spectrum-{name}",
        )  # fmt: skip


def _line(i: int, label: str, x: str, y: str, legend: bool, dash: str = "solid") -> dict[str, Any]:
    return {
        "type": "scatter", "mode": "lines", "x": x, "y": y, "name": text(label), "showlegend": legend,
        "line": {"color": f"$series{i}", "dash": dash},
        "hovertemplate": "λ = %{x:.4g}: density %{y:.3g}<extra>%{fullData.name}</extra>",
    }  # fmt: skip


def _layers(analyses: Sequence[Analysis]) -> Iterator[Plot]:
    for key, name, title, _, members in alike(analyses):
        held = [(i, a, _layer_values(a.measures[key].summary())) for i, a in members]
        held = [(i, a, h) for i, a, h in held if h]
        if not held:
            continue
        names = list(dict.fromkeys(n for _, _, h in held for n in h))
        traces = [
            {
                "type": "bar", "orientation": "h", "y": [text(n) for n in names],
                "x": rounded([h.get(n, (math.nan, None))[0] for n in names]),
                **error_bars("error_x", [h.get(n, (0, None))[1] for n in names]),
                "name": text(a.label), "marker": {"color": f"$series{i}"}, "showlegend": len(held) > 1,
                "hovertemplate": "%{y}: <b>%{x:.4g}</b><extra>%{fullData.name}</extra>",
            }
            for i, a, h in held
        ]  # fmt: skip
        layout = {
            "barmode": "group", "bargap": 0.25, "margin": {"l": 20, "r": 15, "t": 10, "b": 45},
            "xaxis": {"title": {"text": title}, "zeroline": True},
            "yaxis": {"autorange": "reversed", "automargin": True, "showgrid": False, "type": "category"},
        }  # fmt: skip
        yield Plot(
            f"layers-{slug(name)}", "layers", f"{title}, layer by layer",
            "Lines at the bars' ends are errors." if any("error_x" in t for t in traces) else "",
            {"": {"data": traces, "layout": layout}}, wide=True,
            height=min(900, 110 + len(names) * (16 + 12 * len(held))),
        )  # fmt: skip


def _layer_values(summary: dict[str, Any]) -> dict[str, tuple[float, float | None]]:
    """Layer -> (value, error) of a measure that was taken layer by layer; empty for any other.

    Read from the summary's `layers`: a mapping of names to numbers or to objects with `value` or `values`.
    """
    held = summary.get("layers")
    if not isinstance(held, dict):
        return {}
    by_layer = {}
    for name, entry in held.items():
        if isinstance(entry, dict):
            values, bounds = entry.get("values"), entry.get("error_bounds")
            value = finite(entry.get("value") if "value" in entry else values[0] if values else None)
            error = finite(entry.get("stderr") if "stderr" in entry else bounds[0] if bounds else None)
        else:
            value, error = finite(entry), None
        if value is not None:
            by_layer[str(name)] = (value, error)
    return by_layer


def _training(analyses: Sequence[Analysis]) -> Iterator[Plot]:
    if not any(a.history for a in analyses):
        return
    for column, title, unit, log in (("loss", "Loss", "loss", True), ("accuracy", "Accuracy", "accuracy", False)):
        traces: list[dict[str, Any]] = []
        named: set[int] = set()
        for i, a in enumerate(analyses):
            for split, dash in (("test", "solid"), ("train", "dash")):
                points = [(r.get("epoch"), r.get(f"{split}_{column}")) for r in a.history or ()]
                points = [(e, v) for e, v in points if e is not None and v is not None and math.isfinite(v)]
                if not points:
                    continue
                several = len(analyses) > 1
                full = text(f"{a.label}, {split}" if several else split)
                traces.append(
                    {
                        "type": "scatter", "mode": "lines", "x": [e for e, _ in points],
                        "y": rounded([v for _, v in points]), "name": text(a.label if several else split),
                        "line": {"color": f"$series{i}", "dash": dash},
                        "hovertemplate": f"epoch %{{x}}: <b>%{{y:.4g}}</b><extra>{full}</extra>",
                        # One entry per checkpoint, which hides both of its lines: twenty would eat the plot.
                        **({"legendgroup": str(i), "showlegend": i not in named} if several else {}),
                    }
                )  # fmt: skip
                named.add(i)
        if traces:
            modes = linear_log(traces, "epoch", unit)
            if not log:
                modes = {"": modes["linear"]}
                modes[""]["layout"]["yaxis"].update(tickformat=".0%", rangemode="normal")
            yield Plot(
                f"training-{column}", "training", f"{title} during training",
                "Dashed: training set, as seen during the epoch. Solid: test set.", modes, group=f"training-{column}",
            )  # fmt: skip
