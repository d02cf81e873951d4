"""Arrays with named axes and units: the one form of all numbers that are stored, exported or drawn."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True)
class NamedArrays:
    """Arrays by name, each with the names of its axes and its unit.

    An axis is an array of its own name: its coordinates, numbers or text.

    Attributes:
        values: name -> array.
        axes: name -> names of its axes, in the order of its dimensions.
        units: name -> unit; empty for a pure number or text.
    """

    values: dict[str, np.ndarray] = field(default_factory=dict)
    axes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.values[name]

    def axis(self, name: str, values: Iterable[Any], unit: str = "") -> None:
        """Add the coordinates of an axis."""
        self.add(name, (name,), np.asarray(list(values)), unit)

    def add(self, name: str, axes: Sequence[str], values: Any, unit: str = "") -> None:
        """Add an array whose dimensions are called `axes`.

        Raises:
            ValueError: another number of axes than dimensions, or an axis of another length than its coordinates.
        """
        values, axes = np.asarray(values), tuple(axes)
        lengths = [len(self.values[a]) if a in self.values and a != name else n for a, n in zip(axes, values.shape)]  # noqa: B905
        if len(axes) != values.ndim or values.shape != tuple(lengths):
            raise ValueError(f"{name} has shape {values.shape}, its axes {axes} do not")
        self.values[name], self.axes[name], self.units[name] = values, axes, unit

    def remove(self, name: str) -> None:
        """Take an array out."""
        for part in (self.values, self.axes, self.units):
            part.pop(name, None)

    def at(self, name: str, **labels: Any) -> np.ndarray:
        """The array at given coordinates, `at("error", method="sam")`; the other axes remain, in their order.

        Raises:
            KeyError: a coordinate that the axis does not have exactly once.
        """
        index = tuple(self._position(axis, labels[axis]) if axis in labels else slice(None) for axis in self.axes[name])
        return self.values[name][index]

    def _position(self, axis: str, label: Any) -> int:
        hits = np.flatnonzero(self.values[axis] == label)
        if len(hits) != 1:
            raise KeyError(f"{label!r} is not on the axis {axis}: {self.values[axis].tolist()}")
        return int(hits[0])

    @property
    def coordinates(self) -> list[str]:
        """Names of the axes that have coordinates."""
        return [name for name in self.values if self.axes[name] == (name,)]

    def unit(self, name: str) -> str:
        """Unit of an array; empty where none was given."""
        return self.units.get(name, "")

    def tables(self) -> dict[tuple[str, ...], dict[str, np.ndarray]]:
        """Axes -> the arrays over just these, which are the columns of one table; axes alone are none."""
        tables: dict[tuple[str, ...], dict[str, np.ndarray]] = {}
        for name, axes in self.axes.items():
            if axes and not (axes == (name,) and any(name in a and a != axes for a in self.axes.values())):
                tables.setdefault(axes, {})[name] = self[name]
        return tables

    @property
    def tidy_columns(self) -> list[str]:
        """Columns of `tidy`."""
        return ["quantity", *self.coordinates, "value", "unit"]

    def tidy(self) -> Iterator[list[Any]]:
        """A row for every number: its quantity, its coordinates ("" along other axes), the number, its unit."""
        coordinates = self.coordinates
        for name, values in self.values.items():
            if name in coordinates:
                continue
            for index in np.ndindex(*values.shape):
                at = {a: self[a][i] for a, i in zip(self.axes[name], index, strict=True) if a in coordinates}
                yield [name, *(at.get(c, "") for c in coordinates), values[index], self.unit(name)]

    def shapes(self) -> Mapping[str, Mapping[str, Any]]:
        """Name -> axes, shape and unit."""
        return {
            n: {"axes": tuple(self.axes[n]), "shape": np.shape(v), "unit": self.unit(n)} for n, v in self.values.items()
        }
