"""What an HDF5 file holds, read by the HDF5 library alone: a program of its own, and a function for trusted files.

The library may loop for ever or take any memory on a forged file, and follows links and external storage to other
files. Here whatever a result never holds is refused before it is read: links, external and virtual storage, filters,
numbers that are not in the file. Arrays of anybody's data may be stored in pieces and packed by the library's own
filters. As a program (`python hdf5_contents.py`) it reads requests and files from its standard input and writes their
contents to its standard output, within limits on time and memory; it imports nothing of the toolkit.

Both directions: 8 bytes of length, then that many bytes. A request is JSON: null for all that a result holds, or names
of arrays; the file follows. Contents are JSON, then the bytes of the arrays in order.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import IO, Any

import h5py
import numpy as np

LENGTH = 8
SECONDS, BYTES_A_SECOND = 5, 10_000_000
SPARE_BYTES, COPIES = 1 << 30, 8
"""Memory that reading may take: a constant, and this many times the file."""

_SCALES = frozenset(("CLASS", "NAME", "DIMENSION_LIST", "REFERENCE_LIST", "DIMENSION_LABELS"))
_DEPTH = 32
_FILTERS = frozenset(
    (h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32, h5py.h5z.FILTER_LZF)
)
_RATIO = 1032
"""No packed byte of the library's own filters stands for more."""
_NAMED = 50
Contents = dict[str, dict[str, Any]]


class ForeignContent(Exception):
    """The file holds something that no result holds; the message says what."""


def contents(image: bytes) -> Contents:
    """Every group of an HDF5 file by its path, "" the file itself: its "attributes", its "arrays" by name.

    An array comes with the labels of its dimensions and its unit or None.

    Raises:
        ForeignContent: links to elsewhere, storage outside of the file, filters, or types that no result holds.
        Exception: whatever the library raises on damaged bytes.
    """
    with h5py.File(h5py.h5f.open_file_image(image)) as file:
        return dict(_groups(file, "", len(image), set()))


def _groups(group: Any, path: str, size: int, seen: set[int]) -> Iterator[tuple[str, dict[str, Any]]]:
    address = h5py.h5o.get_info(group.id).addr
    if address in seen or path.count("/") > _DEPTH:
        raise ForeignContent(f"group {path} is held twice or too deep")
    seen.add(address)
    arrays, inner = {}, []
    for name in group:
        if type(group.get(name, getlink=True)) is not h5py.HardLink:
            raise ForeignContent(f"{path}/{name} is a link to elsewhere")
        item = group[name]
        if isinstance(item, h5py.Dataset):
            arrays[name] = _array(item, size)
        elif isinstance(item, h5py.Group):
            inner.append((item, f"{path}/{name}" if path else name))
        else:
            raise ForeignContent(f"{path}/{name} is neither a group nor an array")
    yield path, {"attributes": {k: _attribute(group, k) for k in group.attrs if k not in _SCALES}, "arrays": arrays}
    for item, name in inner:
        yield from _groups(item, name, size, seen)


def arrays(image: bytes, names: Sequence[str]) -> Contents:
    """The arrays of those names ("group/array"), of numbers, as `contents` returns them, without attributes.

    Those that are not there are left out; the group "" has the attribute "names" of the arrays that are.

    Raises:
        ForeignContent: as `contents`, but for pieces and the library's own filters.
    """
    with h5py.File(h5py.h5f.open_file_image(image)) as file:
        present: list[str] = []
        file.visititems(lambda name, item: present.append(name) if isinstance(item, h5py.Dataset) else None)
        found: dict[str, Any] = {name: (_packed(file[name], len(image)), [], None) for name in names if name in present}
        return {"": {"attributes": {"names": ", ".join(present[:_NAMED])}, "arrays": found}}


def _packed(dataset: Any, size: int) -> np.ndarray:
    properties = dataset.id.get_create_plist()
    if properties.get_external_count() or properties.get_layout() == h5py.h5d.VIRTUAL:
        raise ForeignContent(f"{dataset.name} is stored outside of the file or virtually")
    filters = {properties.get_filter(i)[0] for i in range(properties.get_nfilters())}
    if not filters <= _FILTERS:
        raise ForeignContent(f"{dataset.name} is packed by a filter of others (write it with compression='gzip')")
    if dataset.dtype.kind not in "biuf":
        raise ForeignContent(f"{dataset.name} holds {dataset.dtype}: numbers are needed")
    held = dataset.id.get_storage_size()
    if dataset.shape is None or dataset.size * dataset.dtype.itemsize > min(held, size) * (_RATIO if filters else 1):
        raise ForeignContent(f"{dataset.name} has the shape {dataset.shape}, the file holds {held} bytes of it")
    return np.asarray(dataset[()])


def _attribute(group: Any, name: str) -> Any:
    value = group.attrs[name]
    value = value.item() if isinstance(value, np.generic) else value
    if not isinstance(value, str | bool | int | float):
        raise ForeignContent(f"attribute {name} is neither text nor a number")
    return value


def _array(dataset: Any, size: int) -> tuple[np.ndarray, list[str], str | None]:
    properties = dataset.id.get_create_plist()
    if properties.get_external_count() or properties.get_layout() not in (h5py.h5d.CONTIGUOUS, h5py.h5d.COMPACT):
        raise ForeignContent(f"{dataset.name} is stored outside of the file, virtually or in pieces")
    text = h5py.check_string_dtype(dataset.dtype) is not None
    if not text and dataset.dtype.kind not in "biufc":
        raise ForeignContent(f"{dataset.name} holds {dataset.dtype}")
    held = dataset.id.get_storage_size()
    if dataset.shape is None or not held >= dataset.size * dataset.dtype.itemsize <= size:
        raise ForeignContent(f"{dataset.name} has the shape {dataset.shape}, the file holds {held} bytes of it")
    values = np.asarray(dataset.asstr()[()], dtype=str) if text else np.asarray(dataset[()])
    unit = dataset.attrs.get("unit")
    return values, [str(d.label) for d in dataset.dims], None if unit is None else str(unit)


# -- as a program ----------------------------------------------------------------------------------------------------


def pack(read: Contents) -> bytes:
    """Contents as bytes."""
    parts: list[bytes] = []
    groups = {
        path: {**group, "arrays": {n: _described(entry, parts) for n, entry in group["arrays"].items()}}
        for path, group in read.items()
    }
    header = json.dumps(groups).encode()
    return len(header).to_bytes(LENGTH, "big") + header + b"".join(parts)


def _described(entry: tuple[np.ndarray, list[str], str | None], parts: list[bytes]) -> list[Any]:
    values, labels, unit = entry
    if values.dtype.kind == "U":
        return ["str", values.shape, values.ravel().tolist(), labels, unit]
    parts.append(np.ascontiguousarray(values).tobytes())
    return [values.dtype.str, values.shape, len(parts[-1]), labels, unit]


def unpack(packed: bytes) -> Contents:
    """The inverse of `pack`."""
    end = LENGTH + int.from_bytes(packed[:LENGTH], "big")
    groups = json.loads(packed[LENGTH:end])
    for group in groups.values():
        for name, (kind, shape, held, labels, unit) in group["arrays"].items():
            if kind == "str":
                values = np.array(held, dtype=str).reshape(shape)
            else:
                values = np.frombuffer(packed, kind, int(np.prod(shape)), end).reshape(shape).copy()
                end += held
            group["arrays"][name] = (values, labels, unit)
    return groups


def send(stream: IO[bytes], content: bytes) -> None:
    """Write the length, then the bytes."""
    stream.write(len(content).to_bytes(LENGTH, "big"))
    stream.write(content)
    stream.flush()


def receive(stream: IO[bytes]) -> bytes | None:
    """The next bytes that `send` wrote; None where the other side is gone."""
    length = stream.read(LENGTH)
    content = stream.read(int.from_bytes(length, "big")) if len(length) == LENGTH else b""
    return content if len(length) == LENGTH and len(content) == int.from_bytes(length, "big") else None


def _limit(size: int) -> None:
    # The default action of the signal ends the process also within the library.
    signal.alarm(SECONDS + size // BYTES_A_SECOND)
    with contextlib.suppress(OSError, ValueError):  # where there is no /proc there is no such limit either
        with open("/proc/self/statm", encoding="ascii") as stream:
            now = int(stream.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (now + SPARE_BYTES + COPIES * size, hard))


def _serve() -> None:
    """Answer until the other side closes: b"+" and the contents, or b"-" and what is wrong."""
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    while (names := receive(requests)) is not None and (image := receive(requests)) is not None:
        _limit(len(image))
        try:
            wanted = json.loads(names)
            answer = b"+" + pack(contents(image) if wanted is None else arrays(image, wanted))
        except ForeignContent as error:
            answer = b"-" + str(error).encode("utf-8", "backslashreplace")
        except Exception:
            answer = b"-"
        signal.alarm(0)
        send(answers, answer)


if __name__ == "__main__":
    _serve()
