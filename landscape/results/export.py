"""Results in other tools' formats: CSV tables, NPZ arrays, JSON for web viewers, surfaces as VTK, STL and glTF."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from landscape.errors import InputError, unknown
from landscape.files import atomic
from landscape.results.arrays import NamedArrays
from landscape.results.hdf5 import load
from landscape.results.result import LabelledArrays, Result, plain


def export(file: str | Path, to: str, out: str | Path | None = None) -> list[Path]:
    """Write every result of an HDF5 file in another format, beside it.

    Args:
        file: what `landscape analyze`, `surface`, `path`, `figures` or `.save()` wrote.
        to: "csv" (one long table for arrays of the same axes, a row per point; of a figure's numbers one tidy table, a
            row per number with its quantity, coordinates and unit), "npz" (one file of arrays named
            `result.field`), "json" (one file: arrays with their axes, null for nan and inf); of surfaces only, the loss
            as height: "vtk" (a legacy VTK structured grid with all arrays), "stl" (a closed body for a printer),
            "gltf" (colored, for browsers and slides).
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
        raise InputError(
            f"{file} holds nothing that fits {to}: vtk, stl and gltf take two-dimensional surfaces, csv arrays"
        )
    return written


def write_tidy(stream: Any, arrays: NamedArrays) -> None:
    """Write a tidy table: quantity, a column for every axis, value, unit; a row for every number."""
    writer = csv.writer(stream)
    writer.writerow(arrays.tidy_columns)
    writer.writerows([_text(cell) for cell in row] for row in arrays.tidy())


# -- formats ---------------------------------------------------------------------------------------------------------


def _csv(results: Mapping[str, Result], stem: Path) -> Iterator[Path]:
    for name, result in results.items():
        if isinstance(result, LabelledArrays):
            path = _beside(stem, name, results, ".csv")
            with atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as stream:
                write_tidy(stream, result)
            yield path
            continue
        arrays = result.named_arrays()
        tables = arrays.tables()
        for axes, columns in tables.items():
            suffix = "" if len(tables) == 1 else f"-{'-'.join(axes)}"
            path = _beside(stem, name, results, f"{suffix}.csv")
            with atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as stream:
                _write_table(stream, axes, columns, arrays)
            yield path


def _write_table(stream: Any, axes: tuple[str, ...], columns: Mapping[str, np.ndarray], arrays: NamedArrays) -> None:
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


def _mesh(ending: str, results: Mapping[str, Result], stem: Path) -> Iterator[Path]:
    for name, result in results.items():
        if (content := result.mesh(ending, name)) is not None:
            path = _beside(stem, name, results, f".{ending}")
            with atomic(path) as temporary:
                temporary.write_bytes(content)
            yield path


FORMATS: dict[str, Callable[[Mapping[str, Result], Path], Iterator[Path]]] = {
    "csv": _csv,
    "npz": _npz,
    "json": _json,
    "vtk": partial(_mesh, "vtk"),
    "stl": partial(_mesh, "stl"),
    "gltf": partial(_mesh, "gltf"),
}


def _beside(stem: Path, name: str, results: Mapping[str, Result], ending: str) -> Path:
    middle = "" if len(results) == 1 else "-" + "".join(c if c.isalnum() or c in "._-" else "-" for c in name)
    return stem.with_name(f"{stem.name}{middle}{ending}")
