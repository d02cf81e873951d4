"""Finished points are safe on disk: a journal beside the result file, appended to as points are finished.

The journal is a directory: `header.json` (whose points these are and how they are computed), `directions.pt`, and
`points.bin`, a sequence of records that each carry a checksum. A record is whole or, being the last one when the
process was killed, ignored. Of processes that share the points each has a file of its own, `points-*.bin`, and reads
the others'. The result file itself is only ever replaced atomically: it opens at any moment.
"""

from __future__ import annotations

import shutil
import struct
import uuid
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from landscape import archive, files
from landscape.errors import InputError
from landscape.results.result import plain
from landscape.surfaces.directions.directions import Directions

_RECORD = struct.Struct("<IIq")  # number of the quantity, number of float64 values, index of the tile
_CHECK = struct.Struct("<I")
_SYNC_SECONDS = 2.0
Records = dict[tuple[int, int], np.ndarray]


class PointJournal:
    """Points of one surface on their way.

    Attributes:
        header: what `begin` wrote (axes, choice, identity); None where nothing was begun.
        directions: of the surface that was begun.
        records: finished tiles: (quantity, index of the tile) -> values.

    Args:
        directory: of the journal; it need not exist.
        identity: what the points belong to (weights, sample, arguments); plain JSON values.
        resume: go on with what is there; else start over.
        shared: with other processes.

    Raises:
        InputError: the journal there belongs to something else, or its header is damaged.
    """

    def __init__(
        self, directory: Path, identity: Mapping[str, Any], *, resume: bool = True, shared: bool = False
    ) -> None:
        self.directory, self.identity = directory, dict(identity)
        self.header: dict[str, Any] | None = None
        self.directions: Directions | None = None
        self.records: Records = {}
        self._mine = directory / (f"points-{uuid.uuid4().hex}.bin" if shared else "points.bin")
        self._file = files.AppendedFile(self._mine, _SYNC_SECONDS)
        self._read: dict[Path, int] = {}
        if not resume and directory.exists():
            shutil.rmtree(directory)
        if self.begun:
            self.header = self._read_header()
            refuse_other(self.header["identity"], self.identity, directory)
            self.directions = self._read_directions()
            self.look()
            self._cut_off()

    @property
    def begun(self) -> bool:
        """Whether `begin` has ended, in whatever process."""
        return (self.directory / "header.json").exists()

    def begin(self, header: Mapping[str, Any], directions: Directions) -> None:
        """Start an empty journal: its directions and header are on disk when this returns."""
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir(parents=True)
        content = {k: getattr(directions, k) for k in ("name", "unit", "facts", "marks", "residuals")}
        content["vectors"] = [v.cpu() for v in directions.vectors]
        content["ranges"] = None if directions.ranges is None else [list(r) for r in directions.ranges]
        files.write_tensors(self.directory / "directions.pt", content)
        self.header = plain({"identity": self.identity, **header})
        # Last: a header says that everything else is there.
        files.write_json(self.directory / "header.json", self.header)

    def append(self, quantity: int, index: int, values: np.ndarray) -> None:
        """Write one finished tile; it survives the death of the process at once, that of the machine after 2 s."""
        payload = np.ascontiguousarray(values, dtype="<f8").tobytes()
        body = _RECORD.pack(quantity, len(payload) // 8, index) + payload
        self._file.append(body + _CHECK.pack(zlib.crc32(body)))

    def close(self, *, delete: bool = False) -> None:
        """Let go of the file; `delete` once the result is saved."""
        self._file.close()
        if delete:
            (self.directory / "header.json").unlink(missing_ok=True)  # first: it says that everything else is there
            shutil.rmtree(self.directory, ignore_errors=True)

    def _read_header(self) -> dict[str, Any]:
        path = self.directory / "header.json"
        try:
            content = files.read_json(path)
            content["identity"].items()
        except (InputError, KeyError, AttributeError) as error:
            raise InputError(f"{path} is damaged: delete {self.directory} and run again") from error
        return content

    def _read_directions(self) -> Directions:
        """The directions as they were, in whatever dtype and on the CPU; their center is the caller's."""
        path = self.directory / "directions.pt"
        try:
            archive.verify(path)
            content = torch.load(path, weights_only=True)
            content["vectors"] = tuple(content["vectors"])
            content["ranges"] = None if content["ranges"] is None else tuple(tuple(r) for r in content["ranges"])
            return Directions(center=torch.empty(0), **content)
        except Exception as error:
            raise InputError(f"{path} is damaged: delete {self.directory} and run again") from error

    def look(self) -> None:
        """Take in what was written since the last look, by whomever."""
        for path in sorted(self.directory.glob("points*.bin")):
            start = self._read.get(path, 0)
            try:
                with open(path, "rb") as stream:
                    stream.seek(start)
                    content, whole = stream.read(), 0
            except FileNotFoundError:  # the surface is finished, and its points are being removed
                continue
            for quantity, index, values, whole in _records(content):  # noqa: B007 - the last end is needed
                self.records[quantity, index] = values
            self._read[path] = start + whole

    def _cut_off(self) -> None:
        """Behind the last whole record of the file that is appended to."""
        if self._mine.exists() and self._read[self._mine] < self._mine.stat().st_size:
            with open(self._mine, "r+b") as stream:
                stream.truncate(self._read[self._mine])


def refuse_other(stored: Mapping[str, Any], wanted: Mapping[str, Any], path: Path) -> None:
    """Raise InputError naming the first thing in which the stored result differs from the wanted one."""
    for key in [*wanted, *(k for k in stored if k not in wanted)]:
        before, now = stored.get(key), wanted.get(key)
        if before != now:
            if isinstance(before, dict) and isinstance(now, dict):
                refuse_other(before, now, path)
            if key.endswith("sha256"):
                before, now = str(before)[:12], str(now)[:12]
            raise InputError(
                f"{path} holds a surface of another {_NAMES.get(key, key)} ({before}, now {now}): "
                "choose another file (--out on the command line), or delete this one"
            )


_NAMES = {
    "weights_sha256": "checkpoint: SHA-256 of the weights",
    "sample_sha256": "sample of examples: SHA-256",
}


def _records(content: bytes) -> Iterator[tuple[int, int, np.ndarray, int]]:
    """(quantity, index, values, end) of every whole record."""
    position = 0
    while position + _RECORD.size <= len(content):
        quantity, count, index = _RECORD.unpack_from(content, position)
        body = position + _RECORD.size + 8 * count
        if body + _CHECK.size > len(content):
            return
        if zlib.crc32(content[position:body]) != _CHECK.unpack_from(content, body)[0]:
            return
        values = np.frombuffer(content, "<f8", count, position + _RECORD.size).copy()
        position = body + _CHECK.size
        yield quantity, index, values, position
