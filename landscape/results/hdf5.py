"""Results in HDF5: a group a result, arrays with dimension scales, everything else as attributes.

Files open in plain h5py and in xarray; text and records are JSON in attributes. The last line of a file is the SHA-256
of everything before it, behind the end of what HDF5 reads; it is verified before the library sees a byte.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from landscape.errors import InputError
from landscape.files import note_unverified, write_bytes
from landscape.formatting import printable
from landscape.results import digest
from landscape.results.arrays import NamedArrays
from landscape.results.fields import completed
from landscape.results.result import Result, plain

_SEAL, _SEAL_LENGTH = b"\nlandscape sha256 ", 18 + 64 + 1
_SEALED = "checksum"
"""Attribute of the file that says that it ends in a seal: one that lacks it was changed or cut off."""

_written: set[str] = set()
"""SHA-256 of the files that this process wrote: the HDF5 library may read them here."""


@dataclass(frozen=True)
class Group:
    """A group of a file: its attributes as they are stored, and its arrays."""

    attributes: dict[str, Any] = field(default_factory=dict)
    arrays: NamedArrays = field(default_factory=NamedArrays)


def save(path: str | Path, results: Mapping[str, Result], attributes: Mapping[str, Any] | None = None) -> None:
    """Write results to an HDF5 file, each as one group, beside the groups that are there already; atomic.

    Args:
        path: the file.
        results: group name ("a" or "a/b") -> result; a group of that name is replaced.
        attributes: attributes of the file itself.

    Raises:
        InputError: the file that is there is damaged or holds what is not a result, or the new one cannot be written.
    """
    groups = read(path) if Path(path).exists() else {}
    kept = {k: g for k, g in groups.items() if not any(k == r or k.startswith(f"{r}/") for r in results)}
    file = {**kept.pop("", Group()).attributes, **{k: _attribute(v) for k, v in (attributes or {}).items()}}
    write(path, {"": Group(file), **kept, **{name: group_of(result) for name, result in results.items()}})


def load(path: str | Path) -> Result | dict[str, Result]:
    """Read what `save` wrote: the result, or name -> result where the file holds several.

    Raises:
        InputError: the file is missing, damaged, no HDF5 file, points at other files, or holds no result.
    """
    loaded = {name: result_of(path, group) for name, group in read(path).items() if "type" in group.attributes}
    if not loaded:
        raise InputError(
            f"{path} holds no result of this toolkit: give a file that `landscape analyze` or .save() wrote"
        )
    return next(iter(loaded.values())) if len(loaded) == 1 and "result" in loaded else loaded


def load_group(path: str | Path, name: str) -> Result | None:
    """The one result called `name`; None where the file holds none of that name."""
    group = read(path).get(name)
    return None if group is None or "type" not in group.attributes else result_of(path, group)


def attributes(path: str | Path) -> dict[str, Any]:
    """The attributes of the file itself (checkpoint SHA-256, command)."""
    return _values(path, read(path)[""].attributes)


# -- results and groups ----------------------------------------------------------------------------------------------


def group_of(result: Result) -> Group:
    """A result as a group: its arrays, the rest as attributes."""
    rest: dict[str, Any] = {"type": type(result).__name__}
    for f in dataclasses.fields(result):
        value = getattr(result, f.name)
        if value is not None and "axes" not in f.metadata:
            rest[f.name] = _attribute(value)
    return Group(rest, result.named_arrays())


def result_of(path: str | Path, group: Group) -> Result:
    """The result that a group holds; its type is looked up among ours and nowhere else."""
    import landscape

    landscape.import_all()
    name = group.attributes["type"]
    kind = Result.kinds.get(str(name))
    if kind is None:
        raise InputError(f"{path}: unknown result type {name!r}: written by a newer version?")
    stored = _values(path, {k: v for k, v in group.attributes.items() if k != "type"})
    fields = {f.name for f in dataclasses.fields(kind)}
    values = {**{k: v for k, v in stored.items() if k in fields}, **kind.fields_of(group.arrays)}
    try:
        return kind(**completed(kind, values))
    except ValueError as error:
        raise InputError(f"{path} holds a {name} whose fields do not fit ({error}): run again") from error


def _attribute(value: Any) -> Any:
    return value if isinstance(value, bool | int | float) else json.dumps(plain(value))


def _values(path: str | Path, stored: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return {k: _escaped(json.loads(v)) if isinstance(v, str) else v for k, v in stored.items() if k != _SEALED}
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} holds text that is no JSON: it was written by another program") from error


def _escaped(value: Any) -> Any:
    """Text of a file is shown on terminals and in pictures: no control characters."""
    if isinstance(value, dict):
        return {printable(k): _escaped(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_escaped(v) for v in value]
    return printable(value) if isinstance(value, str) else value


# -- files -----------------------------------------------------------------------------------------------------------


def write(path: str | Path, groups: Mapping[str, Group]) -> None:
    """Write an HDF5 file of these groups ("" is the file itself) and seal it; atomic."""
    import h5py

    with h5py.File("image", "w", driver="core", backing_store=False) as file:
        file.attrs[_SEALED] = json.dumps("the last line is the SHA-256 of all bytes before it")
        for name, group in groups.items():
            target = file.require_group(name) if name else file
            target.attrs.update(group.attributes)
            _write_arrays(target, group.arrays)
        file.flush()
        image = file.id.get_file_image()
    seal = digest.of_parts([image])
    write_bytes(path, image + _SEAL + seal.encode() + b"\n")
    _written.add(seal)


def _write_arrays(group: Any, arrays: NamedArrays) -> None:
    """Datasets with dimension scales, their units as attributes."""
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
            if label:
                group[name].dims[i].label = label
            if label != name and label in arrays.coordinates:
                group[name].dims[i].attach_scale(group[label])


def read(path: str | Path) -> dict[str, Group]:
    """Every group of an HDF5 file by its path, "" the file itself; a file without a seal is read with a warning.

    A file that this process did not write is read by a child process, see `hdf5_process`.

    Raises:
        InputError: the file is missing, damaged, no HDF5 file, or holds what no result holds.
    """
    path = Path(path)
    if not path.is_file():
        kind = "is a directory" if path.is_dir() else "is not a regular file"
        raise InputError(f"{path} {kind}: an .h5 file is needed" if path.exists() else f"{path}: no such file")
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    sealed = raw[-_SEAL_LENGTH:].startswith(_SEAL)
    image = raw[:-_SEAL_LENGTH] if sealed else raw
    seal = digest.of_parts([image])
    if sealed and raw[-_SEAL_LENGTH:] != _SEAL + seal.encode() + b"\n":
        raise InputError(
            f"{path} is damaged (its SHA-256 is not the one it ends in): use another copy, or compute it again with "
            "another --out"
        )
    groups = _groups(path, image, trusted=seal in _written)
    if not sealed:
        _require_unsealed(path, groups)
    return groups


def _groups(path: Path, image: bytes, trusted: bool) -> dict[str, Group]:
    from landscape.results import hdf5_contents, hdf5_process

    try:
        read = (hdf5_contents if trusted else hdf5_process).contents(image)
    except hdf5_contents.ForeignContent as error:
        if str(error):
            raise InputError(f"{path} is not a result of this toolkit: {error}") from error
        raise InputError(
            f"{path} is not a readable HDF5 file (a result, such as analysis.h5, is needed; truncated or damaged?): "
            "use another file or copy"
        ) from error
    return {name: Group(part["attributes"], _arrays(part["arrays"])) for name, part in read.items()}


def _arrays(parts: Mapping[str, tuple[np.ndarray, list[str], str | None]]) -> NamedArrays:
    arrays = NamedArrays()
    for name, (values, labels, unit) in parts.items():
        text = values.dtype.kind == "U"
        arrays.values[name] = (
            np.array([printable(str(v)) for v in values.flat]).reshape(values.shape) if text else values
        )
        arrays.axes[name] = tuple(labels)
        if unit is not None:
            arrays.units[name] = printable(unit)
    return arrays


def _require_unsealed(path: Path, groups: Mapping[str, Group]) -> None:
    if _SEALED in groups[""].attributes:
        raise InputError(f"{path} was cut off, or changed by another program, since it was written: run again")
    note_unverified(path)
