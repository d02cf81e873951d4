"""Results in HDF5: a group a result, arrays with dimension scales, everything else as attributes.

Files open in plain h5py and in xarray; text and records are JSON in attributes.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from landscape.errors import InputError
from landscape.files import atomic
from landscape.results.arrays import Arrays
from landscape.results.result import Result, plain


def save(path: str | Path, results: Mapping[str, Result], attributes: Mapping[str, Any] | None = None) -> None:
    """Write results to an HDF5 file, each as one group, beside the groups that are there already; atomic.

    Args:
        path: the file.
        results: group name ("a" or "a/b") -> result; a group of that name is replaced.
        attributes: attributes of the file itself.
    """
    import h5py

    path = Path(path)
    with atomic(path) as temporary:
        if path.exists():
            # The whole file is copied: copying groups one by one would lose the references of dimension scales.
            _open(path).close()
            shutil.copyfile(path, temporary)
        with h5py.File(temporary, "r+" if path.exists() else "w") as file:
            for key, value in (attributes or {}).items():
                file.attrs[key] = _attribute(value)
            for name, result in results.items():
                if name in file:
                    del file[name]
                write_group(file.create_group(name), result)


def load(path: str | Path) -> Result | dict[str, Result]:
    """Read what `save` wrote: the result, or name -> result where the file holds several.

    Raises:
        InputError: the file is missing, no HDF5 file, or holds no result.
    """
    with _open(Path(path)) as file:
        names: list[str] = []
        file.visititems(lambda name, item: names.append(name) if "type" in item.attrs else None)
        loaded = {name: read_group(file[name]) for name in names}
    if not loaded:
        raise InputError(
            f"{path} holds no result of this toolkit: give a file that `landscape analyze` or .save() wrote"
        )
    return next(iter(loaded.values())) if len(loaded) == 1 and "result" in loaded else loaded


def load_group(path: str | Path, name: str) -> Result | None:
    """The one result called `name`; None where the file holds none of that name."""
    with _open(Path(path)) as file:
        return read_group(file[name]) if name in file and "type" in file[name].attrs else None


def attributes(path: str | Path) -> dict[str, Any]:
    """The attributes of the file itself (checkpoint SHA-256, command)."""
    with _open(Path(path)) as file:
        return {k: _unattribute(v) for k, v in file.attrs.items()}


def write_group(group: Any, result: Result) -> None:
    """Write one result into an (empty) HDF5 group: arrays as datasets with dimension scales, the rest as attributes."""
    group.attrs["type"] = type(result).__name__
    for f in dataclasses.fields(result):
        value = getattr(result, f.name)
        if value is not None and "axes" not in f.metadata:
            group.attrs[f.name] = _attribute(value)
    write_arrays(group, result.named_arrays())


def read_group(group: Any) -> Result:
    """Read one result from its HDF5 group; its type is looked up among ours and nowhere else."""
    import landscape

    landscape.import_all()
    kind = Result.kinds.get(str(group.attrs["type"]))
    if kind is None:
        raise InputError(
            f"{group.file.filename}: unknown result type {group.attrs['type']!r}: written by a newer version?"
        )
    values = kind.fields_of(read_arrays(group))
    for f in dataclasses.fields(kind):
        if f.name not in values and f.name in group.attrs:
            values[f.name] = _unattribute(group.attrs[f.name])
    missing = [f.name for f in dataclasses.fields(kind) if _required(f) and f.name not in values]
    # An optional array without default is None when it was not computed.
    values.update(dict.fromkeys(missing))
    return kind(**values)


def write_arrays(group: Any, arrays: Arrays) -> None:
    """Write arrays into an HDF5 group: datasets with dimension scales, their units as attributes."""
    import h5py

    for name, array in arrays.values.items():
        values = np.asarray(array)
        text = values.dtype.kind == "U"
        data = values.astype(object) if text else values
        group.create_dataset(name, data=data, dtype=h5py.string_dtype() if text else None)
        if name in arrays.units:
            group[name].attrs["unit"] = arrays.units[name]
    for name in arrays.coordinates:
        group[name].make_scale(name)
    for name, axes in arrays.axes.items():
        for i, label in enumerate(axes):
            group[name].dims[i].label = label
            if label != name and label in arrays.coordinates:
                group[name].dims[i].attach_scale(group[label])


def read_arrays(group: Any) -> Arrays:
    """Every dataset of the group."""
    import h5py

    arrays = Arrays()
    for name, dataset in group.items():
        if isinstance(dataset, h5py.Dataset):
            text = h5py.check_string_dtype(dataset.dtype) is not None
            arrays.values[name] = np.asarray(dataset.asstr()[()], dtype=str) if text else np.asarray(dataset)
            arrays.axes[name] = tuple(d.label for d in dataset.dims)
            arrays.units[name] = str(dataset.attrs.get("unit", ""))
    return arrays


def _required(f: dataclasses.Field) -> bool:
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


def _attribute(value: Any) -> Any:
    return value if isinstance(value, bool | int | float) else json.dumps(plain(value))


def _unattribute(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value.item() if isinstance(value, np.generic) else value


def _open(path: Path) -> Any:
    import h5py

    if not path.is_file():
        raise InputError(
            f"{path}: no such file" if not path.exists() else f"{path} is a directory: an .h5 file is needed"
        )
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise InputError(
            f"{path} is not a readable HDF5 file (truncated or damaged?): delete it and run again"
        ) from error
