"""Folders of `torch.distributed.checkpoint`: a pickled table of contents beside files of tensors.

The table is read by an unpickler that knows the classes of such tables and nothing else, as records without code; the
tensors by `torch.load(weights_only=True)`. torch's own reader unpickles whatever the table names.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from landscape.errors import InputError

_METADATA = "torch.distributed.checkpoint.metadata"
_RECORDS = {
    *((_METADATA, n) for n in ("Metadata", "MetadataIndex", "StorageMeta", "TensorProperties", "_MEM_FORMAT_ENCODING")),
    *((_METADATA, f"{n}StorageMetadata") for n in ("Tensor", "Bytes", "Chunk")),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    *((m, f"{kind}Path") for m in ("pathlib", "pathlib._local") for kind in ("Posix", "Windows")),
}


class _Record:
    """Arguments and attributes of a pickled object, kept as data."""

    values: dict[str, Any]

    def __new__(cls, *_: Any) -> _Record:
        record = super().__new__(cls)
        record.values = {}
        return record

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.values = state

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def __hash__(self) -> int:
        return id(self)


class _Size(tuple):
    """torch.Size as a tuple of its own, so that the pickle reaches no class of ours."""

    __slots__ = ()


class _Table(pickle.Unpickler):
    def __init__(self, content: bytes, path: Path) -> None:
        super().__init__(io.BytesIO(content))
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        """A class made for this one call: what the pickle does to it goes away with it."""
        if (module, name) in _RECORDS:
            return type(name, (_Record,), {})
        if (module, name) == ("torch", "Size"):
            return type(name, (_Size,), {"__slots__": ()})
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return None
        raise InputError(
            f"{self.path} was refused: it names {module}.{name}, which no table of a distributed checkpoint needs: do "
            "not trust it"
        )


def contents(folder: Path) -> dict[str, Tensor]:
    """Name -> whole tensor, put together from the pieces that the processes wrote; values that are no tensors are left.

    Raises:
        InputError: the table names code or is damaged, a file is missing, pieces do not cover a tensor.
    """
    path = folder / ".metadata"
    try:
        table = _Table(path.read_bytes(), path).load()
        tensors = {k: v for k, v in table["state_dict_metadata"].items() if "chunks" in v.values}
        pieces: dict[str, list[tuple[tuple[int, ...], Any]]] = {name: [] for name in tensors}
        for index, stored in table["storage_data"].items():
            if index["fqn"] in tensors:
                pieces[index["fqn"]].append((tuple(index["offset"] or ()), stored))
        return {name: _whole(folder, name, tuple(tensors[name]["size"]), pieces[name]) for name in tensors}
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{path} is not the table of a distributed checkpoint that can be read ({type(error).__name__}: {error})"
        ) from error


def _whole(folder: Path, name: str, size: tuple[int, ...], pieces: list[tuple[tuple[int, ...], Any]]) -> Tensor:
    whole, covered = None, 0
    for offset, stored in pieces:
        piece = _piece(folder, stored)
        if piece.shape == size:
            return piece
        whole = torch.zeros(size, dtype=piece.dtype) if whole is None else whole
        whole[tuple(slice(o, o + n) for o, n in zip(offset, piece.shape, strict=True))] = piece
        covered += piece.numel()
    if whole is None or covered != whole.numel():
        raise InputError(f"{folder} is incomplete: {covered} numbers of {name} {size} are there")
    return whole


def _piece(folder: Path, stored: _Record) -> Tensor:
    name = stored["relative_path"]
    if not isinstance(name, str) or Path(name).name != name or not (folder / name).is_file():
        raise InputError(f"{folder} is incomplete: its file {name!r} is missing")
    with (folder / name).open("rb") as stream:
        stream.seek(stored["offset"])
        content = io.BytesIO(stream.read(stored["length"]))
    return torch.load(content, map_location="cpu", weights_only=True)
