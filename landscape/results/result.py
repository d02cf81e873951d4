"""Results: frozen records of arrays with named axes, an error estimate, the cost and the provenance."""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from landscape.results.arrays import NamedArrays

if TYPE_CHECKING:
    import pandas
    import xarray

_DRAWN_BY = "figures.drawing.results"
"""The floor above draws; it is imported when a picture is asked for, and nothing here depends on it."""
LARGEST_IN_SUMMARY = 64
"""Numbers of an array that a summary still lists."""


def array(*axes: str, **default: Any) -> Any:
    """Dataclass field that holds an array whose dimensions are called `axes`.

    An axis that carries the name of another one-dimensional array field takes its coordinates from there.
    """
    return field(metadata={"axes": axes}, **default)


@dataclass(frozen=True, kw_only=True)
class Result:
    """What every result carries besides its own fields.

    Attributes:
        label: what was computed, in words; None where no measure did.
        arguments: what was asked for (rho, scaling, seed, ...).
        cost: passes over the examples: forward, backward, hvp.
        seconds: wall time.
        provenance: sample, BatchNorm policy, dtype, device, versions; see `Problem.provenance`.
    """

    kinds: ClassVar[dict[str, type[Result]]] = {}

    label: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    provenance: dict[str, Any] = field(default_factory=dict)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        known = Result.kinds.setdefault(cls.__name__, cls)
        if known.__module__ != cls.__module__:
            raise TypeError(f"two result types are called {cls.__name__}: in {known.__module__} and {cls.__module__}")
        Result.kinds[cls.__name__] = cls
        if "__repr__" not in vars(cls):
            cls.__repr__ = Result.__repr__  # type: ignore[method-assign]  # a dataclass would print every array

    def __repr__(self) -> str:
        """`Trace(Hessian trace: 12.3 ± 0.4)`."""
        from landscape.results import words

        return words.line(self)

    def _repr_html_(self) -> str:
        """What a notebook shows: the same with a table of numbers, arrays, arguments and cost."""
        from landscape.results import words

        return words.table(self)

    def plot(self, ax: Any = None) -> Any:
        """Draw the result.

        Args:
            ax: matplotlib's Axes to draw into; by default those of a new figure as wide as a column of a paper. A
                surface over a plane is drawn in 3-D into axes that are.

        Returns:
            The Axes.

        Raises:
            InputError: nothing of the result can be drawn.
        """
        return importlib.import_module(_DRAWN_BY).draw(self, ax)

    def to_dataframe(self, *axes: str) -> pandas.DataFrame:
        """A table of pandas.

        Args:
            axes: which arrays, by the names of their axes: `surface.to_dataframe("x", "y")`. By default one row of
                numbers for a result that has one value, else the arrays that share the axes of its main one.

        Returns:
            Coordinates in the first columns, then an array a column; `.attrs` has label, arguments, cost (JSON).

        Raises:
            InputError: pandas is not installed, no arrays over these axes.
        """
        from landscape.results import frames

        return frames.dataframe(self, axes)

    def to_xarray(self) -> xarray.Dataset:
        """Every array with its named axes and coordinates, and the numbers beside them, as a Dataset of xarray.

        Raises:
            InputError: xarray is not installed.
        """
        from landscape.results import frames

        return frames.dataset(self)

    def summary(self) -> dict[str, Any]:
        """The entry of summary.json: arguments, then every field but large arrays; plain JSON types."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in _BOOKKEEPING}
        large = [k for k, v in values.items() if hasattr(v, "ndim") and math.prod(v.shape) > LARGEST_IN_SUMMARY]
        return self.summary_of({k: v for k, v in values.items() if k not in large})

    def summary_of(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The label, the arguments, these values, cost and seconds; plain JSON types."""
        label = {"label": self.label} if self.label else {}
        return plain({**label, **self.arguments, **values, "cost": self.cost, "seconds": self.seconds})

    def named_arrays(self) -> NamedArrays:
        """Every array that was computed."""
        arrays = NamedArrays()
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if "axes" in f.metadata and value is not None:
                arrays.values[f.name] = as_numpy(value)
                # A surface's arrays have the axes of its plane, or only the first of them on a line.
                arrays.axes[f.name] = tuple(f.metadata["axes"])[: arrays[f.name].ndim]
        return arrays

    @classmethod
    def main_array(cls, arrays: NamedArrays) -> str:
        """Name of the array that a result is about: its `values`, else the first that is more than coordinates."""
        return "values" if "values" in arrays.values else next(n for n, a in arrays.axes.items() if a != (n,))

    @classmethod
    def fields_of(cls, arrays: NamedArrays) -> dict[str, Any]:
        """Field -> value of those that hold arrays: the inverse of `named_arrays`."""
        return {f.name: arrays[f.name] for f in dataclasses.fields(cls) if f.name in arrays.values}

    @property
    def neighboring_start(self) -> Any:
        """What the same measure starts from at neighboring weights (its argument `start`); None: nothing."""
        return getattr(self, "vectors", None)

    def mesh(self, ending: str, title: str) -> bytes | None:
        """The content of a file of that ending (vtk, stl, gltf); None for a result that is no surface over a plane."""
        return None

    def save(self, path: str | Path, name: str = "result") -> None:
        """Write to an HDF5 file under the group `name`; other groups of the file stay. The file appears whole."""
        from landscape.results import hdf5

        hdf5.save(path, {name: self})


_BOOKKEEPING = frozenset(f.name for f in dataclasses.fields(Result))


@dataclass(frozen=True, kw_only=True)
class LabelledArrays(Result, NamedArrays):
    """A result whose arrays are not known beforehand: the numbers behind a figure or a table."""

    values: dict[str, np.ndarray] = array(default_factory=dict)
    axes: dict[str, tuple[str, ...]] = array(default_factory=dict)
    units: dict[str, str] = array(default_factory=dict)

    def named_arrays(self) -> NamedArrays:
        """The arrays, with their units."""
        return NamedArrays(values=self.values, axes=self.axes, units=self.units)

    @classmethod
    def fields_of(cls, arrays: NamedArrays) -> dict[str, Any]:
        """The fields of a result of this kind from its stored arrays: all are held as they are."""
        return {f.name: getattr(arrays, f.name) for f in dataclasses.fields(arrays)}

    def summary(self) -> dict[str, Any]:
        """Arguments, and the axes, shape and unit of every array."""
        return plain({**self.arguments, "arrays": self.shapes()})


def plain(value: Any) -> Any:
    """JSON types only: arrays and tensors become lists, nan and inf become None."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, torch.Tensor | np.ndarray):
        return plain(as_numpy(value).tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | bool | None) else str(value)


def as_numpy(value: Any) -> np.ndarray:
    """A tensor or anything array-like in host memory; bfloat16, which NumPy does not know, as float32."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    return np.asarray(value)
