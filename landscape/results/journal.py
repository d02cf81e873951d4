"""Rows of an unfinished computation, one JSON line each, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from landscape.errors import InputError
from landscape.files import AppendedFile, atomic, note_unverified


class Journal:
    """Rows by name, kept in a file as soon as they are known; without a path in memory only.

    The first line says what the rows belong to; a file of something else is started over. A last line that was cut off
    by a kill is computed again; any other damaged line is reported, since a kill does not do that. Numbers come back
    bit for bit.

    Args:
        path: the file, or None.
        resume: use the rows that are there; otherwise they are dropped.

    Attributes:
        path: the file, or None.
        rows: by name, in the order in which they were computed.
        parts: directory of further journals, in which processes that share the rows leave them (see
            `landscape.shared_rows`); None without a path.
    """

    def __init__(self, path: Path | None = None, *, resume: bool = False) -> None:
        self.path, self._resume, self._key = path, resume, ""
        self.rows: dict[str, Any] = {}
        self.parts = None if path is None else path.with_suffix(".parts")
        self._file: AppendedFile | None = None
        self._unverified = False

    def stored(self, key: str) -> dict[str, Any] | None:
        """The rows in the file, by name; None where it belongs to something else than `key`, or is not a journal.

        Raises:
            InputError: a line is damaged.
        """
        lines = [] if self.path is None else self._lines()
        if not lines or lines[0] != {"key": key}:
            return None
        rows = (line for line in lines[1:] if line.keys() == {"name", "row"})
        return {line["name"]: line["row"] for line in rows if isinstance(line["name"], str)}

    def open(self, key: str) -> None:
        """Begin, or go on with, the rows that belong to `key`.

        Raises:
            InputError: the file cannot be written, or a line that is to be used is damaged.
        """
        if self.path is None:
            return
        stored = self.stored(key) if self._resume else None
        if stored is not None:
            self.rows = stored
            if self._unverified:
                note_unverified(self.path)
        if self._resume:
            self.rows = {**self._left(key), **self.rows}
        self._key = key
        self._rewrite()

    def row(self, name: str, compute: Callable[[], Any]) -> Any:
        """The row `name`: as it was kept, or computed now and kept. Plain JSON values (nan and inf too)."""
        if name not in self.rows:
            self.rows[name] = compute()
            if self._file is not None:
                self._file.append(_line({"name": name, "row": self.rows[name]}).encode())
        return self.rows[name]

    def drop(self, names: Collection[str]) -> None:
        """Forget rows: they will be computed again."""
        self.rows = {name: row for name, row in self.rows.items() if name not in names}
        self._rewrite()

    def close(self) -> None:
        """Let go of the file, which stays."""
        if self._file is not None:
            self._file.close()

    def finish(self) -> None:
        """Everything is computed and kept elsewhere: remove the file."""
        self.close()
        if self.path is not None:
            self.path.unlink(missing_ok=True)
        self.remove_parts()

    def remove_parts(self) -> None:
        """The rows that processes have left in files of their own are known here: remove those."""
        if self.parts is not None:
            shutil.rmtree(self.parts, ignore_errors=True)

    def _left(self, key: str) -> dict[str, Any]:
        """The rows that belong to `key` in files of their own."""
        parts = sorted(self.parts.glob("*.jsonl")) if self.parts is not None else []
        return {name: row for part in parts for name, row in (Journal(part).stored(key) or {}).items()}

    def _rewrite(self) -> None:
        if self.path is None:
            return
        self.close()
        with atomic(self.path) as temporary:
            lines = [{"key": self._key}, *({"name": n, "row": r} for n, r in self.rows.items())]
            temporary.write_text("".join(map(_line, lines)), encoding="utf-8")
        self._file = AppendedFile(self.path)

    def _lines(self) -> list[Any]:
        assert self.path is not None
        lines: list[Any] = []
        raws = self.path.read_bytes().splitlines(keepends=True) if self.path.is_file() else []
        for number, raw in enumerate(raws, 1):
            line = self._line(raw, first=number == 1)
            if line is None:
                if number == len(raws) and not raw.endswith(b"\n"):  # cut off by a kill
                    break
                raise InputError(
                    f"{self.path} is damaged at line {number}: restore it or remove it and recompute its rows"
                )
            lines.append(line)
        return lines

    def _line(self, raw: bytes, *, first: bool) -> dict[str, Any] | None:
        """The content of a line; None of one that is not whole."""
        try:
            line = json.loads(raw)
            checksum = line.pop(_CHECKSUM, None)
            # The first line says whether there are checksums: release 0.1.0 wrote none.
            self._unverified = checksum is None if first else self._unverified
            whole = checksum == _checksum(line) or (self._unverified and (not first or line.keys() == {"key"}))
        except (ValueError, AttributeError, TypeError, RecursionError):
            return None
        return line if whole else None


_CHECKSUM = "crc32"


def _checksum(content: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(content).encode())


def _line(content: dict[str, Any]) -> str:
    return json.dumps({**content, _CHECKSUM: _checksum(content)}) + "\n"
