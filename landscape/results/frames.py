"""Results as pandas' tables and xarray's labeled arrays; both libraries are imported when they are asked for."""

from __future__ import annotations

import dataclasses
import importlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from landscape.errors import InputError
from landscape.results.arrays import NamedArrays
from landscape.results.result import LabelledArrays, Result, plain

if TYPE_CHECKING:
    import pandas
    import xarray

_ENDS = ("low", "high")
"""Columns that an interval, whose first axis is `bound`, becomes in a table."""


def dataframe(result: Result, axes: tuple[str, ...] = ()) -> pandas.DataFrame:
    """See `Result.to_dataframe`."""
    pandas = _required("pandas", "to_dataframe()")
    if isinstance(result, LabelledArrays) and not axes:
        frame = pandas.DataFrame(list(result.tidy()), columns=result.tidy_columns)
    elif axes or not _scalar(result):
        frame = pandas.DataFrame(_columns(result, axes))
    else:
        frame = pandas.DataFrame([_scalars(result)])
    frame.attrs.update(_facts(result))
    return frame


def dataset(result: Result) -> xarray.Dataset:
    """See `Result.to_xarray`."""
    xarray = _required("xarray", "to_xarray()")
    arrays = result.named_arrays()
    named = {n: (arrays.axes[n], v, _unit(arrays, n)) for n, v in arrays.values.items()}
    coordinates: dict[str, Any] = {n: named.pop(n) for n in arrays.coordinates}
    for axis in {a for axes in arrays.axes.values() for a in axes} - set(coordinates):
        if (labels := _labels(result, axis)) is not None:
            coordinates[axis] = ((axis,), labels, {})
    scalars = {} if isinstance(result, LabelledArrays) else _scalars(result)
    return xarray.Dataset(named | scalars, coordinates, _facts(result))


def _required(library: str, what: str) -> Any:
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise InputError(f"{what} needs {library}: pip install 'loss-landscape-toolkit[notebook]'") from error


def _scalar(result: Result) -> bool:
    """Whether the result is a number with arrays beside it, or numbers alone."""
    fields = {f.name for f in dataclasses.fields(result)}
    return "value" in fields or not result.named_arrays().values


def _scalars(result: Result) -> dict[str, Any]:
    held = {f.name: getattr(result, f.name) for f in dataclasses.fields(result)}
    bookkeeping = {f.name for f in dataclasses.fields(Result)}
    return {k: v for k, v in held.items() if isinstance(v, bool | int | float | str) and k not in bookkeeping}


def _columns(result: Result, axes: tuple[str, ...]) -> dict[str, Any]:
    """Every array over the axes, a row per point, after the coordinates or positions along them."""
    arrays = _with_ends(result.named_arrays())
    tables = arrays.tables()
    axes = axes or arrays.axes[result.main_array(arrays)]
    if axes not in tables:
        known = "; ".join(", ".join(map(repr, a)) for a in tables)
        raise InputError(f"{type(result).__name__} has no table over {', '.join(axes)}: it has those over {known}")
    columns = tables[axes]
    shape = next(iter(columns.values())).shape
    positions = np.indices(shape).reshape(len(shape), -1)
    along = {a: _coordinates(result, arrays, a, n) for a, n in zip(axes, shape, strict=True)}
    coordinates = {a: values[at] for (a, values), at in zip(along.items(), positions, strict=True)}
    return coordinates | {name: values.reshape(-1) for name, values in columns.items() if (name,) != axes}


def _coordinates(result: Result, arrays: NamedArrays, axis: str, size: int) -> np.ndarray:
    if axis in arrays.coordinates:
        return arrays[axis]
    return np.asarray(_labels(result, axis) or range(size))


def _labels(result: Result, axis: str) -> list[str] | None:
    """Names along an axis: the field `layers` holds those of the axis `layer`."""
    names = getattr(result, f"{axis}s", None)
    return names if isinstance(names, list) else None


def _with_ends(arrays: NamedArrays) -> NamedArrays:
    """The arrays with `low` and `high` in place of an interval over (bound, ...)."""
    axes = arrays.axes.get("interval", ())
    if axes[:1] != ("bound",) or len(axes) == 1:
        return arrays
    split = NamedArrays(values=dict(arrays.values), axes=dict(arrays.axes), units=dict(arrays.units))
    split.remove("interval")
    for name, end in zip(_ENDS, arrays["interval"], strict=True):
        split.add(name, axes[1:], end)
    return split


def _unit(arrays: NamedArrays, name: str) -> dict[str, str]:
    return {"units": arrays.unit(name)} if arrays.unit(name) else {}


def _facts(result: Result) -> dict[str, Any]:
    """What both carry along, in types that every file format takes: text and numbers."""
    records = {k: json.dumps(plain(getattr(result, k)), sort_keys=True) for k in ("arguments", "cost", "provenance")}
    return {"label": result.label or type(result).__name__, **records, "seconds": result.seconds}
