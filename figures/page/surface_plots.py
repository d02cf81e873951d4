"""Loss surfaces of the report: in 3-D, as contours and as cuts, all checkpoints on one scale."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from figures.page.grids import RISE, Grid, Scale, View, fineness, grids, views
from figures.page.specification import Plot, Scene, SharedArrays, linear_log, log10, rounded, slug, text
from landscape.formatting import number

if TYPE_CHECKING:
    from figures.page.analysis import Analysis

SCENES = 8
"""Most 3-D pictures on a page: browsers keep about 16 WebGL contexts and drop the oldest ones after that."""
_HEIGHT = {"linear": "z{}", "log": "log{}", "rise": "rise{}"}
"""What a mode draws: the loss, its logarithm, or how far it lies above the trained weights' own."""
_CENTER = {"color": "#D55E00", "line": {"color": "#ffffff", "width": 1}}
"""The trained weights: a color that viridis does not hold, in every theme."""


def surface_plots(analyses: Sequence[Analysis], arrays: SharedArrays) -> Iterator[Plot]:
    """3-D pictures, contours and cuts of every surface, on one scale."""
    drawn = grids(analyses)
    planes = [g for g in drawn if g.loss.ndim == 2]
    if planes:
        shown = views(planes)
        for i, grid in enumerate(planes):
            arrays.put(f"z{i}", grid.loss.T)
            arrays.put(f"x{i}", grid.axes[0])
            arrays.put(f"y{i}", grid.axes[1])
            for view in shown:
                values = view.drawn[i].loss.T
                arrays.put(_HEIGHT[view.mode].format(i), log10(values) if view.log else values)
        scenes = [
            Scene(g.label, _named("Surface", g, planes), g.caption, {v.mode: _scene(i, g, v) for v in shown})
            for i, g in enumerate(planes)
        ]
        choices = scenes if len(scenes) > SCENES else ()
        for i, scene in enumerate(scenes[:SCENES]):
            yield Plot(
                f"surface-3d-{i}", "surface", scene.title, scene.caption, scene.modes,
                group="surface", row="3d", three_d=True, shape="1.2", choices=choices,
            )  # fmt: skip
        for i, grid in enumerate(planes):
            modes = {v.mode: _contour(i, grid, v, bar=len(planes) == 1) for v in shown}
            yield Plot(
                f"surface-contour-{i}", "surface", _named("Contours", grid, planes), "", modes,
                group="surface", row="contour", shape="1.12" if len(planes) == 1 else "1",
            )  # fmt: skip
        if len(planes) > 1:
            yield Plot(
                "surface-scale", "surface", "One scale of colors and heights", "", {v.mode: _strip(v) for v in shown},
                group="surface", row="scale", wide=True, height=64,
            )  # fmt: skip
        yield from _maps(planes, arrays)
    if drawn:
        yield _cuts(drawn)


def _named(kind: str, grid: Grid, all_grids: Sequence[Grid]) -> str:
    return kind if len(all_grids) == 1 else f"{kind}: {grid.label}"


def _smooth(i: int, grid: Grid, view: View) -> dict[str, Any]:
    """Axes and heights for the eye, which the page interpolates; what is read off are the computed points' losses."""
    height = _HEIGHT[view.mode].format(i)
    parts = fineness(log10(grid.loss) if view.log else grid.loss)
    return {
        "x": f"@fine:{parts}:x{i}", "y": f"@fine:{parts}:y{i}", "z": f"@fine:{parts}:{height}",
        "text": f"@near:{parts}:z{i}", "name": text(grid.label), "meta": {"x": f"@x{i}", "y": f"@y{i}"},
    }  # fmt: skip


def _scene(i: int, grid: Grid, view: View) -> dict[str, Any]:
    log, scale = view.log, view.scale
    low, high = scale.limits(log)
    surface = {
        "type": "surface", **_smooth(i, grid, view),
        "colorscale": "Viridis", "cmin": low, "cmax": high, "showscale": False,
        "contours": {"z": {"show": True, "color": "rgba(255,255,255,0.45)", "width": 1, **_levels(scale, log)}},
        "lighting": {"ambient": 0.75, "diffuse": 0.6, "specular": 0.05, "roughness": 0.9},
        "hovertemplate": "%{text}<extra></extra>",
    }  # fmt: skip
    center = math.log10(grid.center) if log and grid.center > 0 else view.drawn[i].center
    mark = {
        "type": "scatter3d", "x": [0], "y": [0], "z": [center], "mode": "markers", "showlegend": False,
        "marker": {"size": 5, **_CENTER},
        "hovertemplate": f"trained weights<br>loss <b>{number(grid.center)}</b><extra></extra>",
    }  # fmt: skip
    axis = {"gridcolor": "$grid", "zerolinecolor": "$grid", "color": "$text", "showspikes": False, "nticks": 5}
    layout = {
        "scene": {
            "xaxis": {**axis, "title": {"text": text(grid.names[0])}},
            "yaxis": {**axis, "title": {"text": text(grid.names[1])}},
            "zaxis": {**axis, "title": {"text": ""}, "range": scale.padded(log), **_ticks(scale, log)},
            "aspectmode": "manual", "aspectratio": {"x": 1, "y": 1, "z": 0.75},
            "camera": {"eye": {"x": 1.32, "y": -1.32, "z": 0.95}, "center": {"x": 0, "y": 0, "z": -0.27}},
        },
        "margin": {"l": 0, "r": 0, "t": 0, "b": 0},
    }  # fmt: skip
    return {"data": [surface, mark], "layout": layout}


def _contour(i: int, grid: Grid, view: View, bar: bool) -> dict[str, Any]:
    log, scale = view.log, view.scale
    low, high = scale.limits(log)
    filled = {
        "type": "contour", **_smooth(i, grid, view), "colorscale": "Viridis", "zmin": low, "zmax": high,
        "autocontour": False, "contours": {**_levels(scale, log), "coloring": "heatmap", "showlabels": not log},
        "line": {"width": 0.7, "color": "rgba(255,255,255,0.65)"}, "connectgaps": False,
        **({"colorbar": _bar(view)} if bar else {"showscale": False}), "hovertemplate": "%{text}<extra></extra>",
    }  # fmt: skip
    mark = {
        "type": "scatter", "x": [0], "y": [0], "mode": "markers", "showlegend": False,
        "marker": {"size": 9, **_CENTER},
        "hovertemplate": f"trained weights<br>loss <b>{number(grid.center)}</b><extra></extra>",
    }  # fmt: skip
    return {"data": [filled, *_trajectory(grid), mark], "layout": _plane(grid)}


def _plane(grid: Grid) -> dict[str, Any]:
    """Layout of a picture from above."""
    x, y = (
        {
            "title": {"text": text(name)}, "range": rounded(axis[[0, -1]]), "constrain": "domain", "showgrid": False,
            "zeroline": False,
        }
        for name, axis in zip(grid.names, grid.axes, strict=True)
    )  # fmt: skip
    return {
        "xaxis": x, "yaxis": {**y, "scaleanchor": "x"},
        "margin": {"l": 60, "r": 10, "t": 10, "b": 45},
    }  # fmt: skip


def _strip(view: View) -> dict[str, Any]:
    """The color bar of all pictures, lying."""
    low, high = view.scale.limits(view.log)
    values, labels = view.scale.ticks(view.log)
    across = rounded(np.linspace(low, high, 200))
    drawn = {
        "type": "heatmap", "x": across, "y": [0], "z": [across], "colorscale": "Viridis", "showscale": False,
        "hoverinfo": "skip",
    }  # fmt: skip
    layout = {
        "xaxis": {
            "title": {"text": _quantity(view), "standoff": 4}, "range": [low, high], "tickvals": values,
            "ticktext": labels, "tickmode": "array", "showgrid": False, "zeroline": False, "fixedrange": True,
        },
        "yaxis": {"visible": False, "fixedrange": True},
        "margin": {"l": 60, "r": 30, "t": 0, "b": 44},
    }  # fmt: skip
    return {"data": [drawn], "layout": layout}


def _quantity(view: View) -> str:
    return view.drawn[0].quantity


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
            yield Plot(
                f"map-{slug(title)}-{i}", "surface", _named(title, grid, planes), _ABOUT.get(title, ""),
                {"": {"data": [drawn, *_trajectory(grid)], "layout": _plane(grid)}}, row=slug(title), shape="1.12",
            )  # fmt: skip


_ABOUT = {
    "Gradient norm": "Length of the loss's gradient at every point.",
    "Negative against positive curvature": "|smallest| / |largest| Hessian eigenvalue where the smallest is negative: "
    "near 0 a convex-looking picture is honest, near 1 the directions hide as much curvature as they show.",
}


def _bar(view: View) -> dict[str, Any]:
    values, labels = view.scale.ticks(view.log)
    return {
        "title": {"text": _quantity(view), "side": "top"}, "thickness": 12, "len": 0.9,
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
    if len(drawn) > 1 and all(math.isfinite(g.center) for g in drawn):
        centers = [g.center for g in drawn for _ in g.axes]
        rises = [{**t, "y": rounded(np.asarray(t["y"], dtype=float) - c)} for t, c in zip(traces, centers, strict=True)]
        modes = {"rise": linear_log(rises, axis_title, RISE)["linear"], **modes}
    for mode in modes:
        # From zero, the small rises of a flat minimum would all look like one straight line.
        modes[mode]["layout"]["yaxis"]["rangemode"] = "normal"
    return Plot(
        "surface-cuts", "surface", "Cuts through the center",
        "Along each direction (solid: 1, dashed: 2) with the other held at zero; every curve on one scale.",
        modes, group="cuts", wide=True, row="cuts",
    )  # fmt: skip
