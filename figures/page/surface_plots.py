"""Loss surfaces of the report: in 3-D, as contours and as cuts, all checkpoints on one scale."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from figures.page.grids import Grid, Scale, grids, shared_scale
from figures.page.specification import Plot, Scene, SharedArrays, linear_log, log10, rounded, slug, text
from landscape.formatting import number

if TYPE_CHECKING:
    from figures.page.analysis import Analysis

SCENES = 8
"""Most 3-D pictures on a page: browsers keep about 16 WebGL contexts and drop the oldest ones after that."""
_HEIGHT = {"linear": "@z{}", "log": "@log{}", "rise": "@rise{}"}
"""What a mode draws: the loss, its logarithm, or how far it lies above the trained weights' own."""


def surface_plots(analyses: Sequence[Analysis], arrays: SharedArrays) -> Iterator[Plot]:
    """3-D pictures, contours and cuts of every surface, on one scale."""
    drawn = grids(analyses)
    planes = [g for g in drawn if g.loss.ndim == 2]
    if planes:
        scale = shared_scale(planes)
        for i, grid in enumerate(planes):
            arrays.put(f"z{i}", grid.loss.T)
            arrays.put(f"log{i}", log10(grid.loss.T))
            arrays.put(f"x{i}", grid.axes[0])
            arrays.put(f"y{i}", grid.axes[1])
        order = ("log", "linear") if scale.wide_range else ("linear", "log")
        scales = dict.fromkeys(order if scale.low > 0 else ("linear",), scale)
        # Networks of different losses on one scale are plane, each at its height: their shapes compare as rises.
        if len(planes) > 1 and all(math.isfinite(g.center) for g in planes):
            scales["rise"] = shared_scale([replace(g, loss=g.loss - g.center, center=0.0) for g in planes])
            for i, grid in enumerate(planes):
                arrays.put(f"rise{i}", (grid.loss - grid.center).T)
        scenes = [
            Scene(g.label, _named("Surface", g, planes), g.caption, {m: _scene(i, g, s, m) for m, s in scales.items()})
            for i, g in enumerate(planes)
        ]
        choices = scenes if len(scenes) > SCENES else ()
        for i, scene in enumerate(scenes[:SCENES]):
            yield Plot(
                f"surface-3d-{i}", "surface", scene.title, scene.caption, scene.modes,
                group="surface", row="3d", three_d=True, shape="1", choices=choices,
            )  # fmt: skip
        for i, grid in enumerate(planes):
            yield Plot(
                f"surface-contour-{i}", "surface", _named("Contours", grid, planes), "",
                {m: _contour(i, grid, s, m) for m, s in scales.items()}, group="surface", row="contour", shape="1.12",
            )  # fmt: skip
        yield from _maps(planes, arrays)
    if drawn:
        yield _cuts(drawn)


def _named(kind: str, grid: Grid, all_grids: Sequence[Grid]) -> str:
    return kind if len(all_grids) == 1 else f"{kind}: {grid.label}"


def _scene(i: int, grid: Grid, scale: Scale, mode: str) -> dict[str, Any]:
    log = mode == "log"
    low, high = scale.limits(log)
    surface = {
        "type": "surface", "x": f"@x{i}", "y": f"@y{i}", "z": _HEIGHT[mode].format(i),
        "text": f"@text:z{i}", "name": text(grid.label),
        "colorscale": "Viridis", "cmin": low, "cmax": high, "showscale": False,
        "contours": {"z": {"show": True, "color": "rgba(255,255,255,0.45)", "width": 1, **_levels(scale, log)}},
        "lighting": {"ambient": 0.75, "diffuse": 0.6, "specular": 0.05, "roughness": 0.9},
        "hovertemplate": f"{text(grid.names[0])} %{{x:.4g}}<br>{text(grid.names[1])} %{{y:.4g}}"
        "<br>loss <b>%{text}</b><extra></extra>",
    }  # fmt: skip
    center = 0.0 if mode == "rise" else math.log10(grid.center) if log and grid.center > 0 else grid.center
    mark = {
        "type": "scatter3d", "x": [0], "y": [0], "z": [center], "mode": "markers", "showlegend": False,
        "marker": {"size": 4, "color": "$series1", "line": {"color": "$paper", "width": 1}},
        "hovertemplate": f"trained weights<br>loss <b>{number(grid.center)}</b><extra></extra>",
    }  # fmt: skip
    axis = {"gridcolor": "$grid", "zerolinecolor": "$grid", "color": "$text", "showspikes": False, "nticks": 5}
    layout = {
        "scene": {
            "xaxis": {**axis, "title": {"text": "direction 1"}},
            "yaxis": {**axis, "title": {"text": "direction 2"}},
            "zaxis": {**axis, "title": {"text": ""}, "range": scale.padded(log), **_ticks(scale, log)},
            "aspectmode": "manual", "aspectratio": {"x": 1, "y": 1, "z": 0.75},
            "camera": {"eye": {"x": 1.55, "y": -1.55, "z": 1.1}, "center": {"x": 0, "y": 0, "z": -0.15}},
        },
        "margin": {"l": 0, "r": 0, "t": 0, "b": 0},
    }  # fmt: skip
    return {"data": [surface, mark], "layout": layout}


def _contour(i: int, grid: Grid, scale: Scale, mode: str) -> dict[str, Any]:
    log = mode == "log"
    low, high = scale.limits(log)
    filled = {
        "type": "contour", "x": f"@x{i}", "y": f"@y{i}", "z": _HEIGHT[mode].format(i),
        "text": f"@text:z{i}", "name": text(grid.label), "colorscale": "Viridis", "zmin": low, "zmax": high,
        "autocontour": False, "contours": {**_levels(scale, log), "coloring": "heatmap", "showlabels": not log},
        "line": {"width": 0.7, "color": "rgba(255,255,255,0.65)"}, "colorbar": _bar(scale, mode), "connectgaps": False,
        "hovertemplate": f"{text(grid.names[0])} %{{x:.4g}}<br>{text(grid.names[1])} %{{y:.4g}}"
        "<br>loss <b>%{text}</b><extra></extra>",
    }  # fmt: skip
    mark = {
        "type": "scatter", "x": [0], "y": [0], "mode": "markers", "showlegend": False,
        "marker": {"symbol": "cross-thin", "size": 12, "line": {"width": 2, "color": "#ffffff"}},
        "hovertemplate": f"trained weights<br>loss <b>{number(grid.center)}</b><extra></extra>",
    }  # fmt: skip
    layout = {
        "xaxis": {"title": {"text": text(grid.names[0])}, "constrain": "domain", "showgrid": False, "zeroline": False},
        "yaxis": {
            "title": {"text": text(grid.names[1])}, "scaleanchor": "x", "constrain": "domain", "showgrid": False,
            "zeroline": False,
        },
        "margin": {"l": 70, "r": 10, "t": 10, "b": 45},
    }  # fmt: skip
    return {"data": [filled, *_trajectory(grid), mark], "layout": layout}


def _trajectory(grid: Grid) -> list[dict[str, Any]]:
    """The checkpoints in the plane; those of a training run are joined in their order."""
    if grid.marks is None or grid.marks.shape[1] < 2:
        return []
    mode = "lines+markers" if grid.joined else "markers"
    return [
        {
            "type": "scatter", "mode": mode, "showlegend": False, "x": rounded(grid.marks[:, 0]),
            "y": rounded(grid.marks[:, 1]), "line": {"color": "#ffffff", "width": 1.5},
            "marker": {"size": 6, "color": "#ffffff", "line": {"color": "#000000", "width": 1}},
            "text": [str(i) for i in range(len(grid.marks))],
            "hovertemplate": "checkpoint %{text} (%{x:.3g}, %{y:.3g})<extra></extra>",
        }
    ]  # fmt: skip


def _maps(planes: Sequence[Grid], arrays: SharedArrays) -> Iterator[Plot]:
    """What was computed at every point besides the loss, one color scale over all checkpoints."""
    for title in dict.fromkeys(t for g in planes for t in g.maps):
        held = [(i, g, g.maps[title]) for i, g in enumerate(planes) if title in g.maps]
        finite = [v[np.isfinite(v)] for _, _, v in held]
        if not any(v.size for v in finite):
            continue
        low, high = min(v.min() for v in finite if v.size), max(v.max() for v in finite if v.size)
        for i, grid, values in held:
            drawn = {
                "type": "heatmap", "x": f"@x{i}", "y": f"@y{i}", "z": arrays.put(f"{slug(title)}{i}", values.T),
                "colorscale": "Cividis", "zmin": float(low), "zmax": float(high), "name": text(grid.label),
                "colorbar": {"thickness": 12, "len": 0.9, "outlinewidth": 0, "xpad": 6, "exponentformat": "power"},
                "hovertemplate": "%{x:.4g}, %{y:.4g}: <b>%{z:.4g}</b><extra></extra>",
            }  # fmt: skip
            layout = _contour(i, grid, Scale(0.0, 1.0), "linear")["layout"]
            yield Plot(
                f"map-{slug(title)}-{i}", "surface", _named(title, grid, planes), _ABOUT.get(title, ""),
                {"": {"data": [drawn, *_trajectory(grid)], "layout": layout}}, row=slug(title), shape="1.12",
            )  # fmt: skip


_ABOUT = {
    "Gradient norm": "Length of the loss's gradient at every point.",
    "Negative against positive curvature": "|smallest| / |largest| Hessian eigenvalue where the smallest is negative: "
    "near 0 a convex-looking picture is honest, near 1 the directions hide as much curvature as they show.",
}


def _bar(scale: Scale, mode: str) -> dict[str, Any]:
    values, labels = scale.ticks(mode == "log")
    return {
        "title": {"text": "rise" if mode == "rise" else "loss", "side": "top"}, "thickness": 12, "len": 0.9,
        "outlinewidth": 0, "xpad": 6, "tickvals": values, "ticktext": labels, "tickmode": "array",
    }  # fmt: skip


def _levels(scale: Scale, log: bool) -> dict[str, float]:
    levels = scale.levels(log)
    return {"start": levels[0], "end": levels[-1], "size": levels[1] - levels[0]} if len(levels) > 1 else {}


def _ticks(scale: Scale, log: bool) -> dict[str, Any]:
    values, labels = scale.ticks(log)
    return {"tickvals": values, "ticktext": labels, "tickmode": "array"}


def _cuts(drawn: Sequence[Grid]) -> Plot:
    traces = []
    for i, grid in enumerate(drawn):
        for axis, (x, loss) in enumerate(grid.cuts()):
            direction = f"direction {axis + 1}"
            name, full = (grid.label, f"{grid.label}, {direction}") if len(drawn) > 1 else (direction, direction)
            traces.append(
                {
                    "type": "scatter", "mode": "lines", "x": rounded(x), "y": rounded(loss), "name": text(name),
                    "line": {"color": f"$series{i if len(drawn) > 1 else axis}", "dash": ("solid", "dash")[axis]},
                    "hovertemplate": f"%{{x:.4g}}: loss <b>%{{y:.4g}}</b><extra>{text(full)}</extra>",
                    # One entry per checkpoint, which hides all of its lines.
                    **({"legendgroup": str(i), "showlegend": axis == 0} if len(drawn) > 1 else {}),
                }
            )  # fmt: skip
    units = list(dict.fromkeys(g.unit for g in drawn))
    axis_title = "distance from the trained weights" + (f" ({units[0]})" if len(units) == 1 and units[0] else "")
    modes = linear_log(traces, axis_title, "loss")
    # From zero, the small rises of a flat minimum would all look like one straight line.
    modes["linear"]["layout"]["yaxis"]["rangemode"] = "normal"
    return Plot(
        "surface-cuts", "surface", "Cuts through the center",
        "The loss along each direction (solid: 1, dashed: 2) with the other held at zero; every curve on one scale.",
        modes, group="cuts", wide=True, row="cuts",
    )  # fmt: skip
