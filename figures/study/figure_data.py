"""The numbers behind a figure: arrays with named axes, kept as HDF5 and as one tidy CSV."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from landscape.errors import InputError
from landscape.files import atomic
from landscape.results.export import write_tidy
from landscape.results.labelled import LabelledArrays
from landscape.results.result import load_group, plain, write_group

GROUP = "numbers"


@dataclass
class FigureData:
    """Arrays by name, each with the names of its axes and its unit.

    An axis is an array of its own name: its coordinates, numbers or text. `facts` are what a caption has to say.
    """

    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    axes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def axis(self, name: str, values: Iterable[Any], unit: str = "") -> None:
        """Add the coordinates of an axis."""
        self.add(name, (name,), np.asarray(list(values)), unit)

    def add(self, name: str, axes: Sequence[str], values: Any, unit: str = "") -> None:
        """Add an array whose dimensions are called `axes`."""
        values = np.asarray(values)
        axes = tuple(axes)
        if values.shape != tuple(len(self.arrays[a]) if a != name else len(values) for a in axes):
            raise ValueError(f"{name} has shape {values.shape}, its axes {axes} do not")
        self.arrays[name], self.axes[name], self.units[name] = values, axes, unit

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def at(self, name: str, **labels: Any) -> np.ndarray:
        """The array at given coordinates, `at("error", method="sam")`; the other axes remain, in their order."""
        return self.labelled().at(name, **labels)

    def labelled(self) -> LabelledArrays:
        """The result that is kept: `landscape.load` and `landscape export` read it."""
        return LabelledArrays(arguments=plain(self.facts), values=self.arrays, axes=self.axes, units=self.units)

    # -- files -----------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write one HDF5 group with dimension scales; the file appears whole."""
        import h5py

        with atomic(path) as temporary, h5py.File(temporary, "w") as file:
            write_group(file.create_group(GROUP), self.labelled())

    @classmethod
    def load(cls, path: str | Path) -> FigureData:
        """Read what `save` wrote.

        Raises:
            InputError: no such file, or not one of ours.
        """
        found = load_group(path, GROUP)
        if not isinstance(found, LabelledArrays):
            raise InputError(f"{path} holds no figure's numbers: delete it and draw again")
        return cls(dict(found.values), dict(found.axes), dict(found.units), found.arguments)

    def write_csv(self, path: str | Path) -> None:
        """Write what `landscape export --to csv` writes: a tidy table, a row for every number."""
        with atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as stream:
            write_tidy(stream, self.labelled())


def save_arrays(path: str | Path, arrays: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Keep what a computation returned: name -> number or array; the file appears whole."""
    import h5py

    with atomic(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs["facts"] = json.dumps(plain(dict(facts)))
        for name, values in arrays.items():
            file.create_dataset(name, data=np.asarray(values))


def load_facts(path: str | Path) -> dict[str, Any]:
    """The facts that `save_arrays` wrote."""
    import h5py

    with h5py.File(path, "r") as file:
        return json.loads(file.attrs["facts"])


def load_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """Read what `save_arrays` wrote."""
    import h5py

    with h5py.File(path, "r") as file:
        return {name: dataset[()] for name, dataset in file.items()}
