"""Results: frozen records of arrays with named axes, an error estimate, the cost and the provenance; kept in HDF5."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from landscape.errors import InputError
from landscape.files import atomic


def array(*axes: str, default: Any = dataclasses.MISSING) -> Any:
    """Dataclass field that holds an array whose dimensions are called `axes`.

    An axis that carries the name of another one-dimensional array field takes its coordinates from there.
    """
    if default is dataclasses.MISSING:
        return field(metadata={"axes": axes})
    return field(default=default, metadata={"axes": axes})


@dataclass(frozen=True, kw_only=True)
class Result:
    """What every result carries besides its own fields.

    Attributes:
        arguments: what was asked for (rho, scaling, seed, ...).
        cost: passes over the examples: forward, backward, hvp.
        seconds: wall time.
        provenance: sample, BatchNorm policy, dtype, device, versions; see `Problem.provenance`.
    """

    kinds: ClassVar[dict[str, type[Result]]] = {}

    held: ClassVar[frozenset[str]] = frozenset()
    """Fields that `write_arrays` and `read_arrays` take care of besides those made by `array`."""

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

    def summary(self) -> dict[str, Any]:
        """The entry of summary.json: arguments, then every field but large arrays; plain JSON types."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        own.pop("provenance")
        arguments = own.pop("arguments")
        small = {k: v for k, v in own.items() if not (hasattr(v, "ndim") and _size(v) > 64)}
        return plain({**arguments, **small})

    def named_arrays(self) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
        """Name -> (names of its axes, values) of every array that was computed."""
        found = {}
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if "axes" in f.metadata and value is not None:
                values = _numpy(value)
                # A surface's arrays have the axes of its plane, or only the first of them on a line.
                found[f.name] = (tuple(f.metadata["axes"])[: values.ndim], values)
        return found

    def write_arrays(self, group: Any) -> None:
        """Write the arrays into an HDF5 group: datasets with dimension scales."""
        import h5py

        arrays = self.named_arrays()
        for name, (_, values) in arrays.items():
            text = values.dtype.kind == "U"
            data = values.astype(object) if text else values
            group.create_dataset(name, data=data, dtype=h5py.string_dtype() if text else None)
        for name, (axes, _) in arrays.items():
            if axes == (name,):
                group[name].make_scale(name)
        for name, (axes, _) in arrays.items():
            for i, label in enumerate(axes):
                group[name].dims[i].label = label
                if label != name and label in arrays and arrays[label][0] == (label,):
                    group[name].dims[i].attach_scale(group[label])

    @classmethod
    def read_arrays(cls, group: Any) -> dict[str, Any]:
        """Field -> what `write_arrays` wrote of it."""
        own = [f.name for f in dataclasses.fields(cls) if "axes" in f.metadata]
        return {name: np.asarray(group[name]) for name in own if name in group}

    def save(self, path: str | Path, name: str = "result") -> None:
        """Write to an HDF5 file under the group `name`; other groups of the file stay. The file appears whole."""
        save(path, {name: self})


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
        found = {name: read_group(file[name]) for name in names}
    if not found:
        raise InputError(
            f"{path} holds no result of this toolkit: give a file that `landscape analyze` or .save() wrote"
        )
    return next(iter(found.values())) if len(found) == 1 and "result" in found else found


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
        if value is not None and "axes" not in f.metadata and f.name not in result.held:
            group.attrs[f.name] = _attribute(value)
    result.write_arrays(group)


def read_group(group: Any) -> Result:
    """Read one result from its HDF5 group; its type is looked up among ours and nowhere else."""
    import landscape

    landscape.import_all()
    kind = Result.kinds.get(str(group.attrs["type"]))
    if kind is None:
        raise InputError(
            f"{group.file.filename}: unknown result type {group.attrs['type']!r}: written by a newer version?"
        )
    values = kind.read_arrays(group)
    for f in dataclasses.fields(kind):
        if f.name not in values and f.name in group.attrs:
            values[f.name] = _unattribute(group.attrs[f.name])
    missing = [f.name for f in dataclasses.fields(kind) if _required(f) and f.name not in values]
    # An optional array without default is None when it was not computed.
    values.update(dict.fromkeys(missing))
    return kind(**values)


def plain(value: Any) -> Any:
    """JSON types only: arrays and tensors become lists, nan and inf become None."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, torch.Tensor | np.ndarray):
        return plain(_numpy(value).tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | bool | None) else str(value)


def _required(f: dataclasses.Field) -> bool:
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


def _numpy(value: Any) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    return np.asarray(value)


def _size(value: Any) -> int:
    return int(np.prod(value.shape))


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
