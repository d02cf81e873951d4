"""What a file says that a result consists of, held against the result's type before it becomes one."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any

import numpy as np

from landscape.results.arrays import NamedArrays
from landscape.results.result import LabelledArrays, Result


def completed(kind: type[Result], values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a result from those that were stored: what may be None and was not computed is None.

    Raises:
        ValueError: a field is missing, or is none that a result of this kind has. Arrays hold real numbers, have as
            many dimensions as axes, and one length for every axis; labels ("layers") are as many as their axis
            ("layer") is long; everything else is of the type that the field is annotated with.
    """
    hints, fields = _hints(kind), dataclasses.fields(kind)
    for field in fields:
        name = field.name
        if name not in values and _required(field) and not _fits(None, hints[name]):
            raise ValueError(f"{name} is missing")
        if name in values and "axes" not in field.metadata and not _fits(values[name], hints[name]):
            raise ValueError(f"{name} is a {type(values[name]).__name__}")
    if issubclass(kind, LabelledArrays):
        _require_labelled(values["values"], values["axes"])
    else:
        _require_arrays({f.name: f.metadata["axes"] for f in fields if f.metadata}, values)
    return {**{f.name: None for f in fields if _required(f)}, **values}


def _hints(kind: type[Result]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(kind)
    except NameError:  # a guest's annotations may be for type checkers alone
        return {f.name: Any for f in dataclasses.fields(kind)}


def _required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _require_labelled(arrays: Mapping[str, np.ndarray], axes: Mapping[str, tuple[str, ...]]) -> None:
    checked = NamedArrays()
    for name in sorted(arrays, key=lambda n: axes[n] != (n,)):  # coordinates first
        checked.add(name, axes[name], arrays[name])


def _require_arrays(axes: Mapping[str, tuple[str, ...]], values: Mapping[str, Any]) -> None:
    lengths: dict[str, int] = {}
    for name, labels in axes.items():
        if name in values:
            # A surface over a line has no y, and none of its arrays has that axis.
            _require_array(name, values[name], [a for a in labels if a not in axes or a in values], lengths)
    for axis, length in lengths.items():
        names = values.get(f"{axis}s")
        if isinstance(names, list) and len(names) != length:
            raise ValueError(f"{axis}s are {len(names)}, the axis {axis} has {length}")


def _require_array(name: str, array: np.ndarray, axes: list[str], lengths: dict[str, int]) -> None:
    """One array; `lengths` of the axes that are known so far are compared and completed."""
    if array.dtype.kind not in ("iuf" if axes == [name] else "biuf"):
        raise ValueError(f"{name} holds {array.dtype}")
    for axis, length in zip(axes, array.shape, strict=False):
        lengths.setdefault(axis, length)
    empty = array.size == 0 and (array.ndim > 1 or axes == [name])
    if array.shape != tuple(lengths.get(a) for a in axes) or empty:
        raise ValueError(f"{name} has the shape {array.shape} along {', '.join(axes) or 'no axis'}")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value that was stored in JSON or as a number can be of an annotated type; nan is null in records."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is list:
        return isinstance(value, list) and all(v is None or _fits(v, parts[0]) for v in value)
    if origin is dict:
        return isinstance(value, dict) and all(v is None or _fits(v, parts[1]) for v in value.values())
    if hint in (int, float):
        return type(value) in (int, float)
    if hint in (NoneType, bool, str):
        return type(value) is hint
    return value is not None or hint is Any  # other types are a guest's
