"""Surfaces as bodies for other programs: VTK for ParaView, STL for a printer, glTF for a browser or slides."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from landscape.surfaces.result import Surface

HEIGHT = 0.5
"""Height of the relief in multiples of its width: losses and coordinates have no common unit."""
BASE = 0.05
"""Thickness of the plate under a printed surface, in the same."""
_VIRIDIS = np.array([[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]]) / 255
"""The colors at 0, 1/4, ... 1."""


@dataclass(frozen=True)
class Relief:
    """A surface as points in space.

    Attributes:
        x: (n,), y: (m,), z: (n, m): z is `scale` times the loss above `low`, its lowest value, so that the relief is
            HEIGHT times as high as the picture is wide; points without a finite loss lie on top of it.
        scale: height of one unit of the loss.
        low: the lowest loss.
    """

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    scale: float
    low: float

    @classmethod
    def of(cls, surface: Surface) -> Relief:
        """The relief of a plane."""
        x, y = surface.axes
        finite = np.isfinite(surface.loss)
        low, high = (float(f(surface.loss[finite])) for f in (np.min, np.max)) if finite.any() else (0.0, 1.0)
        scale = HEIGHT * (x[-1] - x[0]) / (high - low) if high > low else 1.0
        return cls(x, y, np.where(finite, scale * (surface.loss - low), scale * (high - low)), scale, low)

    def points(self, z: np.ndarray | float) -> np.ndarray:
        """(n m, 3) with y running fastest."""
        return np.stack(np.broadcast_arrays(self.x[:, None], self.y[None, :], z), axis=-1).reshape(-1, 3)

    def triangles(self) -> np.ndarray:
        """(triangle, 3) indices into `points`, counterclockwise as seen from above."""
        index = np.arange(self.z.size).reshape(self.z.shape)
        a, b, c, d = index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]
        return np.concatenate([np.stack(t, axis=-1).reshape(-1, 3) for t in ((a, b, c), (a, c, d))])


def vtk(surface: Surface, title: str = "surface") -> bytes:
    """A legacy VTK structured grid; see `Relief`.

    The loss as it is, the accuracy and what else the surface has are point data; the scale is in the second line.
    """
    relief = Relief.of(surface)
    # x runs fastest in a structured grid.
    points = relief.points(relief.z).reshape(*relief.z.shape, 3).swapaxes(0, 1).reshape(-1, 3)
    lines = [
        "# vtk DataFile Version 3.0",
        f"{ascii(title)[1:-1][:60]}: z = {relief.scale:.9g} * (loss - {relief.low:.9g}), "
        f"axes in {ascii(surface.unit)[1:-1]}",
        "ASCII",
        "DATASET STRUCTURED_GRID",
        f"DIMENSIONS {len(relief.x)} {len(relief.y)} 1",
        f"POINTS {len(points)} double",
        *(f"{x:.17g} {y:.17g} {z:.17g}" for x, y, z in points),
        f"POINT_DATA {len(points)}",
    ]
    arrays = surface.named_arrays()
    for field, values in arrays.values.items():
        if arrays.axes[field] == ("x", "y"):
            kind = "int" if values.dtype == bool else "double"
            lines += [f"SCALARS {field} {kind} 1", "LOOKUP_TABLE default"]
            lines += [str(int(v)) if kind == "int" else f"{v:.17g}" for v in values.T.reshape(-1)]
    return ("\n".join(lines) + "\n").encode("ascii")


def stl(surface: Surface, title: str = "surface") -> bytes:
    """A closed body for a printer, binary STL: the relief on a plate, 100 units wide."""
    relief = Relief.of(surface)
    size = 100 / (relief.x[-1] - relief.x[0])
    floor = -BASE * (relief.x[-1] - relief.x[0])
    top, bottom = relief.points(relief.z), relief.points(floor)
    index = np.arange(relief.z.size).reshape(relief.z.shape)
    # Around the rim, counterclockwise as seen from above, and a wall of two triangles under every step.
    rim = np.concatenate([index[:, 0], index[-1, 1:], index[-2::-1, -1], index[0, -2::-1]])
    i, j = rim[:-1], rim[1:]
    under = i + len(top), j + len(top)
    walls = np.concatenate([np.stack([i, under[0], under[1]], 1), np.stack([i, under[1], j], 1)])
    faces = np.concatenate([relief.triangles(), relief.triangles()[:, ::-1] + len(top), walls])
    corners = size * np.concatenate([top, bottom])[faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    body = np.zeros(len(faces), dtype=[("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
    body["normal"], body["corners"] = normals, corners
    head = f"landscape: {ascii(title)[1:-1]}"[:80].ljust(80).encode("ascii")
    return head + np.uint32(len(faces)).tobytes() + body.tobytes()


def gltf(surface: Surface, title: str = "surface") -> bytes:
    """A glTF 2.0 file that needs no other: the relief, 1 m wide, its points colored by the loss (viridis)."""
    relief = Relief.of(surface)
    size = 1 / (relief.x[-1] - relief.x[0])
    # y points up in glTF.
    points = (size * relief.points(relief.z))[:, [0, 2, 1]] * (1, 1, -1)
    height = relief.z.reshape(-1) / (relief.z.max() or 1.0)
    colors = np.stack([np.interp(height, np.linspace(0, 1, len(_VIRIDIS)), c) for c in _VIRIDIS.T], axis=1)
    # glTF takes colors as linear light, screens as sRGB.
    light = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    arrays = [
        (points.astype("<f4"), "VEC3", 5126),
        (light.astype("<f4"), "VEC3", 5126),
        (relief.triangles().reshape(-1).astype("<u4"), "SCALAR", 5125),
    ]
    data = b"".join(a.tobytes() for a, _, _ in arrays)
    views, accessors, offset = [], [], 0
    for i, (array, shape, kind) in enumerate(arrays):
        views.append({"buffer": 0, "byteOffset": offset, "byteLength": array.nbytes})
        accessors.append({"bufferView": i, "componentType": kind, "count": len(array), "type": shape})
        offset += array.nbytes
    accessors[0] |= {"min": arrays[0][0].min(0).tolist(), "max": arrays[0][0].max(0).tolist()}
    primitive = {"attributes": {"POSITION": 0, "COLOR_0": 1}, "indices": 2, "material": 0}
    material = {"pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": 0.9}, "doubleSided": True}
    content = {
        "asset": {"version": "2.0", "generator": "landscape"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": title}],
        "meshes": [{"primitives": [primitive]}],
        "materials": [material],
        "buffers": [
            {
                "byteLength": len(data),
                "uri": "data:application/octet-stream;base64," + base64.b64encode(data).decode(),
            }
        ],
        "bufferViews": views,
        "accessors": accessors,
    }
    return json.dumps(content).encode("ascii")


MESHES: dict[str, Callable[[Surface, str], bytes]] = {"vtk": vtk, "stl": stl, "gltf": gltf}
"""What a plane can be written as, by the ending of the file."""
