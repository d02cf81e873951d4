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
from landscape.results import hdf5
from landscape.results.arrays import NamedArrays
from landscape.results.export import write_tidy
from landscape.results.result import LabelledArrays, plain

GROUP = "numbers"


@dataclass(frozen=True, kw_only=True)
class FigureData(NamedArrays):
    """The arrays of a figure; `facts` are what a caption has to say."""

    facts: dict[str, Any] = field(default_factory=dict)

    def save(self, path: str | Path) -> None:
        """Write one HDF5 group with dimension scales, as `landscape.load` reads it; the file appears whole."""
        labelled = LabelledArrays(arguments=plain(self.facts), values=self.values, axes=self.axes, units=self.units)
        hdf5.write(path, {GROUP: hdf5.group_of(labelled)})

    @classmethod
    def load(cls, path: str | Path) -> FigureData:
        """Read what `save` wrote.

        Raises:
            InputError: no such file, or not one of ours.
        """
        labelled = hdf5.load_group(path, GROUP)
        if not isinstance(labelled, LabelledArrays):
            raise InputError(f"{path} holds no figure's numbers: delete it and draw again")
        return cls(values=labelled.values, axes=labelled.axes, units=labelled.units, facts=labelled.arguments)

    def write_csv(self, path: str | Path) -> None:
        """Write what `landscape export --to csv` writes: a tidy table, a row for every number."""
        with atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as stream:
            write_tidy(stream, self)


def save_arrays(path: str | Path, arrays: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Keep what a computation returned: name -> number or array; the file appears whole."""
    values = {name: np.asarray(value) for name, value in arrays.items()}
    axes = {name: ("",) * value.ndim for name, value in values.items()}
    hdf5.write(path, {"": hdf5.Group({"facts": json.dumps(plain(dict(facts)))}, NamedArrays(values=values, axes=axes))})


def load_facts(path: str | Path) -> dict[str, Any]:
    """The facts that `save_arrays` wrote.

    Raises:
        InputError: no such file, a damaged one, or not one of ours.
    """
    facts = hdf5.attributes(path).get("facts")
    if not isinstance(facts, dict):
        raise InputError(f"{path} holds no computation of a figure: delete it and run again")
    return facts


def load_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """Read what `save_arrays` wrote; errors as `load_facts`."""
    return hdf5.read(path)[""].arrays.values
