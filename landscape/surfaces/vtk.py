"""Surfaces for ParaView: legacy VTK structured grids."""

from __future__ import annotations

import numpy as np

from landscape.surfaces.result import Surface

HEIGHT = 0.5
"""Height of a VTK surface's relief in multiples of its width: losses and coordinates have no common unit."""


def vtk(surface: Surface, title: str = "surface") -> str:
    """A surface as a legacy VTK structured grid.

    Point (i, j) lies at (x[i], y[j], z): z is the loss above its lowest value, scaled so that the relief is HEIGHT
    times as high as the picture is wide; points without a finite loss lie on top of it. The loss as it is, the
    accuracy and what else the surface has are point data; the scale is in the second line.
    """
    x, y = surface.axes
    finite = np.isfinite(surface.loss)
    low, high = (float(f(surface.loss[finite])) for f in (np.min, np.max)) if finite.any() else (0.0, 1.0)
    scale = HEIGHT * (x[-1] - x[0]) / (high - low) if high > low else 1.0
    z = np.where(finite, scale * (surface.loss - low), scale * (high - low))
    # x runs fastest in a structured grid.
    points = [f"{x[i]:.17g} {y[j]:.17g} {z[i, j]:.17g}" for j in range(len(y)) for i in range(len(x))]
    lines = [
        "# vtk DataFile Version 3.0",
        f"{ascii(title)[1:-1][:60]}: z = {scale:.9g} * (loss - {low:.9g}), axes in {ascii(surface.unit)[1:-1]}",
        "ASCII",
        "DATASET STRUCTURED_GRID",
        f"DIMENSIONS {len(x)} {len(y)} 1",
        f"POINTS {len(points)} double",
        *points,
        f"POINT_DATA {len(points)}",
    ]
    arrays = surface.named_arrays()
    for field, values in arrays.values.items():
        if arrays.axes[field] == ("x", "y"):
            kind = "int" if values.dtype == bool else "double"
            lines += [f"SCALARS {field} {kind} 1", "LOOKUP_TABLE default"]
            lines += [str(int(v)) if kind == "int" else f"{v:.17g}" for v in values.T.reshape(-1)]
    return "\n".join(lines) + "\n"
