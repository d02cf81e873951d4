"""Arrays of any name with named axes and units: the numbers behind a figure or a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from landscape.results.result import Result, plain


@dataclass(frozen=True, kw_only=True)
class LabelledArrays(Result):
    """A result whose arrays are not known beforehand.

    An axis is an array of its own name: its coordinates, numbers or text. In HDF5 each array is a dataset with
    dimension scales and an attribute `unit`.

    Attributes:
        values: name -> array.
        axes: name -> names of its axes, in the order of its dimensions.
        units: name -> unit; empty for a pure number or text.
    """

    held: ClassVar[frozenset[str]] = frozenset({"values", "axes", "units"})

    values: Mapping[str, np.ndarray] = field(default_factory=dict)
    axes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.values[name]

    def at(self, name: str, **labels: Any) -> np.ndarray:
        """The array at given coordinates, `at("error", method="sam")`; the other axes remain, in their order.

        Raises:
            KeyError: a coordinate that the axis does not have exactly once.
        """
        index = tuple(self._position(axis, labels[axis]) if axis in labels else slice(None) for axis in self.axes[name])
        return self.values[name][index]

    def _position(self, axis: str, label: Any) -> int:
        found = np.flatnonzero(self.values[axis] == label)
        if len(found) != 1:
            raise KeyError(f"{label!r} is not on the axis {axis}: {self.values[axis].tolist()}")
        return int(found[0])

    @property
    def coordinates(self) -> list[str]:
        """Names of the axes that have coordinates."""
        return [name for name in self.values if self.axes[name] == (name,)]

    def named_arrays(self) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
        """Name -> (names of its axes, values)."""
        return {name: (tuple(self.axes[name]), np.asarray(values)) for name, values in self.values.items()}

    def summary(self) -> dict[str, Any]:
        """Arguments, and the axes, shape and unit of every array."""
        about = {
            n: {"axes": a, "shape": v.shape, "unit": self.units.get(n, "")} for n, (a, v) in self.named_arrays().items()
        }
        return plain({**self.arguments, "arrays": about})

    def write_arrays(self, group: Any) -> None:
        """Datasets with their units."""
        super().write_arrays(group)
        for name, unit in self.units.items():
            group[name].attrs["unit"] = unit

    @classmethod
    def read_arrays(cls, group: Any) -> dict[str, Any]:
        """Every dataset of the group."""
        import h5py

        found: dict[str, dict[str, Any]] = {f.name: {} for f in dataclasses.fields(cls) if f.name in cls.held}
        for name, dataset in group.items():
            text = h5py.check_string_dtype(dataset.dtype) is not None
            found["values"][name] = np.asarray(dataset.asstr()[()], dtype=str) if text else dataset[()]
            found["axes"][name] = tuple(d.label for d in dataset.dims)
            found["units"][name] = str(dataset.attrs.get("unit", ""))
        return found
