"""Files that survive: a path holds the old content or the new one, never half of it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from landscape.errors import InputError


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place, synced, when the context ends without an exception.

    Raises:
        InputError: the directory cannot be written, or the disk is full.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; choose another directory with --out") from error
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as stream:
            os.fsync(stream.fileno())
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; free space or choose another --out"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


class AppendedFile:
    """A file that grows by whole pieces, opened with the first one.

    A piece survives the death of the process at once, that of the machine after `sync_seconds`.
    """

    def __init__(self, path: Path, sync_seconds: float = 0.0) -> None:
        self._path, self._sync_seconds, self._synced = path, sync_seconds, time.monotonic()
        self._stream: io.RawIOBase | None = None

    def append(self, piece: bytes) -> None:
        """Write a piece at the end."""
        if self._stream is None:
            self._stream = open(self._path, "ab", buffering=0)  # noqa: SIM115  closed by `close`
        self._stream.write(piece)
        if time.monotonic() - self._synced >= self._sync_seconds:
            os.fsync(self._stream.fileno())
            self._synced = time.monotonic()

    def close(self) -> None:
        """Sync and let go of the file."""
        if self._stream is not None:
            os.fsync(self._stream.fileno())
            self._stream.close()
            self._stream = None


def write_json(path: str | Path, content: Any) -> None:
    """Write plain JSON (no nan, no inf: see `results.result.plain`), atomically."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
