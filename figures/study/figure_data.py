"""The numbers behind a figure: arrays with named axes, kept as HDF5 and as one tidy CSV."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from landscape.errors import InputError
from landscape.files import atomic
from landscape.results.arrays import Arrays
from landscape.results.export import write_tidy
from landscape.results.hdf5 import load_group, write_group
from landscape.results.result import LabelledArrays, plain

GROUP = "numbers"


@dataclass(frozen=True, kw_only=True)
class FigureData(Arrays):
    """The arrays of a figure; `facts` are what a caption has to say."""

    facts: dict[str, Any] = field(default_factory=dict)

    def save(self, path: str | Path) -> None:
        """Write one HDF5 group with dimension scales, as `landscape.load` reads it; the file appears whole."""
        import h5py

        labelled = LabelledArrays(arguments=plain(self.facts), values=self.values, axes=self.axes, units=self.units)
        with atomic(path) as temporary, h5py.File(temporary, "w") as file:
            write_group(file.create_group(GROUP), labelled)

    @classmethod
    def load(cls, path: str | Path) -> FigureData:
        """Read what `save` wrote.

        Raises:
            InputError: no such file, or not one of ours.
        """
        labelled = load_group(path, GROUP)
        if not isinstance(labelled, LabelledArrays):
            raise InputError(f"{path} holds no figure's numbers: delete it and draw again")
        return cls(values=labelled.values, axes=labelled.axes, units=labelled.units, facts=labelled.arguments)

    def write_csv(self, path: str | Path) -> None:
        """Write what `landscape export --to csv` writes: a tidy table, a row for every number."""
        with atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as stream:
            write_tidy(stream, self)


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
