"""Results in other tools' formats: CSV tables, NPZ arrays, VTK surfaces for ParaView, JSON for web viewers."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from landscape.errors import InputError, unknown
from landscape.files import atomic
from landscape.results.arrays import Arrays
from landscape.results.hdf5 import load
from landscape.results.result import LabelledArrays, Result, plain
from landscape.surfaces.result import Surface

HEIGHT = 0.5
"""Height of a VTK surface's relief in multiples of its width: losses and coordinates have no common unit."""


def export(file: str | Path, to: str, out: str | Path | None = None) -> list[Path]:
    """Write every result of an HDF5 file in another format, beside it.

    Args:
        file: what `landscape analyze`, `surface`, `path`, `figures` or `.save()` wrote.
        to: "csv" (one long table for arrays of the same axes, a row a point; of a figure's numbers one tidy table, a
            row a number with its quantity, coordinates and unit), "npz" (one file of arrays named
            `result.field`), "vtk" (surfaces only: a legacy VTK structured grid, the loss as height), "json" (one file:
            arrays with their axes, null for nan and inf).
        out: directory; by default the file's own.

    Returns:
        The files written. Arrays keep every digit.

    Raises:
        InputError: an unreadable file, an unknown format, nothing in it that the format can hold.
    """
    if to not in FORMATS:
        raise unknown("format", to, FORMATS)
    file = Path(file)
    loaded = load(file)
    results = loaded if isinstance(loaded, dict) else {file.stem: loaded}
    stem = (Path(out) if out is not None else file.parent) / file.stem
    written = list(FORMATS[to](results, stem))
    if not written:
        raise InputError(f"{file} holds nothing that fits {to}: vtk takes two-dimensional surfaces, csv takes arrays")
    return written


def write_tidy(stream: Any, arrays: Arrays) -> None:
    """Write a tidy table: quantity, a column for every axis, value, unit; a row for every number."""
    writer = csv.writer(stream)
    coordinates = arrays.coordinates
    writer.writerow(["quantity", *coordinates, "value", "unit"])
    for name, values in arrays.values.items():
        if name in coordinates:
            continue
        for index in np.ndindex(*values.shape):
            at = {a: arrays[a][i] if a in coordinates else i for a, i in zip(arrays.axes[name], index, strict=True)}
            labels = [_text(at[c]) if c in at else "" for c in coordinates]
            writer.writerow([name, *labels, _text(values[index]), arrays.unit(name)])


# -- formats ---------------------------------------------------------------------------------------------------------


def _csv(results: Mapping[str, Result], stem: Path) -> Iterator[Path]:
    for name, result in results.items():
        if isinstance(result, LabelledArrays):
            path = _beside(stem, name, results, ".csv")
            with atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as stream:
                write_tidy(stream, result)
            yield path
            continue
        tables: dict[tuple[str, ...], dict[str, np.ndarray]] = {}
        arrays = result.named_arrays()
        for field, axes in arrays.axes.items():
            if axes and not (axes == (field,) and any(field in a and a != axes for a in arrays.axes.values())):
                tables.setdefault(axes, {})[field] = arrays[field]
        for axes, columns in tables.items():
            suffix = "" if len(tables) == 1 else f"-{'-'.join(axes)}"
            path = _beside(stem, name, results, f"{suffix}.csv")
            with atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as stream:
                _write_table(stream, axes, columns, arrays)
            yield path


def _write_table(stream: Any, axes: tuple[str, ...], columns: Mapping[str, np.ndarray], arrays: Arrays) -> None:
    writer = csv.writer(stream)
    coordinates = [a for a in axes if a not in columns]
    writer.writerow([*coordinates, *columns])
    shape = next(iter(columns.values())).shape
    known = {a: arrays[a] for a in coordinates if a in arrays.values and arrays[a].ndim == 1}
    for index in np.ndindex(*shape):
        labels = [known[a][i] if a in known else i for a, i in zip(axes, index, strict=True) if a in coordinates]
        writer.writerow([*(_text(v) for v in labels), *(_text(v[index]) for v in columns.values())])


def _text(value: Any) -> str:
    if isinstance(value, bool | np.bool_):
        return str(int(value))
    return repr(float(value)) if isinstance(value, float | np.floating) else str(value)


def _npz(results: Mapping[str, Result], stem: Path) -> Iterator[Path]:
    content = {}
    for name, result in results.items():
        prefix = "" if len(results) == 1 else f"{name}."
        content.update({f"{prefix}{field}": values for field, values in result.named_arrays().values.items()})
        facts = {k: getattr(result, k) for k in ("arguments", "cost", "provenance")}
        content[f"{prefix}metadata"] = np.array(json.dumps(plain(facts)))
    path = stem.with_name(f"{stem.name}.npz")
    with atomic(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for field, values in content.items():
            entry = io.BytesIO()
            np.lib.format.write_array(entry, np.asarray(values, order="C"), allow_pickle=False)
            archive.writestr(f"{field.replace('/', '.')}.npy", entry.getvalue())
    yield path


def _json(results: Mapping[str, Result], stem: Path) -> Iterator[Path]:
    content = {}
    for name, result in results.items():
        arrays = result.named_arrays()
        fields = {name: {"axes": list(arrays.axes[name]), "values": values} for name, values in arrays.values.items()}
        facts = {k: getattr(result, k) for k in ("arguments", "cost", "provenance")}
        content[name] = {"type": type(result).__name__, "summary": result.summary(), "arrays": fields, **facts}
    path = stem.with_name(f"{stem.name}.json")
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(plain(content), allow_nan=False), encoding="utf-8")
    yield path


def _vtk(results: Mapping[str, Result], stem: Path) -> Iterator[Path]:
    for name, result in results.items():
        if isinstance(result, Surface) and len(result.axes) == 2:
            path = _beside(stem, name, results, ".vtk")
            with atomic(path) as temporary:
                temporary.write_text(vtk(result, name), encoding="ascii")
            yield path


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
        f"{ascii(title)[1:-1][:60]}: z = {scale:.9g} * (loss - {low:.9g}), axes in {surface.unit}",
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


FORMATS: dict[str, Callable[[Mapping[str, Result], Path], Iterator[Path]]] = {
    "csv": _csv,
    "npz": _npz,
    "vtk": _vtk,
    "json": _json,
}


def _beside(stem: Path, name: str, results: Mapping[str, Result], ending: str) -> Path:
    middle = "" if len(results) == 1 else "-" + "".join(c if c.isalnum() or c in "._-" else "-" for c in name)
    return stem.with_name(f"{stem.name}{middle}{ending}")
