"""Files that survive: a path holds the old content or the new one, never half of it."""

from __future__ import annotations

import contextlib
import errno
import glob
import io
import json
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from landscape.errors import InputError, InputWarning
from landscape.results import digest

try:
    import fcntl
except ImportError:  # a system without it has no locks
    fcntl = None  # type: ignore[assignment]

UNFINISHED = ".unfinished"
"""How temporary files end; what a killed process left of them is removed by the next holder of the lock."""
CHECKSUM = "checksum"
"""Key of a record's SHA-256 in its JSON file: of the rest, as JSON with sorted keys."""


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place, synced, when the context ends without an exception.

    What killed processes left of the same file is removed: a temporary file is locked as long as its process lives.

    Raises:
        InputError: the directory cannot be written, or the disk is full.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = _temporary(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; choose another directory with --out") from error
    try:
        _remove_abandoned(path)
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
        if handle is not None:
            os.close(handle)


def _temporary(path: Path) -> tuple[int | None, Path]:
    """A file beside `path`, open and locked; where there are no locks closed, since Windows replaces no open file."""
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.", suffix=UNFINISHED)
        if fcntl is None:
            os.close(handle)
            return None, Path(name)
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.path.exists(name):
            return handle, Path(name)
        os.close(handle)  # another process took it for abandoned between the two calls


def _remove_abandoned(path: Path) -> None:
    for leftover in path.parent.glob(f".{glob.escape(path.name[:100])}.*{UNFINISHED}"):
        with contextlib.suppress(OSError):  # held by a living process, or gone
            handle = os.open(leftover, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                if fcntl is not None:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    leftover.unlink(missing_ok=True)
            finally:
                os.close(handle)


class AppendedFile:
    """A file that grows by whole pieces, opened with the first one.

    A piece survives the death of the process at once, that of the machine after `sync_seconds`.
    """

    def __init__(self, path: Path, sync_seconds: float = 0.0) -> None:
        self._path, self._sync_seconds, self._synced = path, sync_seconds, time.monotonic()
        self._stream: io.RawIOBase | None = None

    def append(self, piece: bytes) -> None:
        """Write a piece at the end.

        Raises:
            InputError: the disk is full, or the directory has vanished or become read-only.
        """
        with self._writing():
            if self._stream is None:
                self._stream = open(self._path, "ab", buffering=0)  # noqa: SIM115  closed by `close`
            if self._stream.write(piece) != len(piece):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if time.monotonic() - self._synced >= self._sync_seconds:
                os.fsync(self._stream.fileno())
                self._synced = time.monotonic()

    def close(self) -> None:
        """Sync and let go of the file."""
        if self._stream is not None:
            with self._writing():
                os.fsync(self._stream.fileno())
                self._stream.close()
                self._stream = None

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"cannot write {self._path}: {error.strerror}; free space, then the same command goes on (with "
                "--resume if it has it)"
            ) from error


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file, atomically. What a library writes by itself goes through memory: none of them survives a full disk.

    HDF5 dumps its state and may crash the process, matplotlib leaves half a picture.
    """
    with atomic(path) as temporary:
        temporary.write_bytes(content)


def write_tensors(path: str | Path, content: Any) -> None:
    """Write what `torch.load(weights_only=True)` reads, atomically."""
    import torch

    with atomic(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:
            # The zip writer reports a failed write as a RuntimeError of varying text; the content is the caller's care.
            free = shutil.disk_usage(temporary.parent).free
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} ({free} bytes free)") from error


def write_json(path: str | Path, content: Any) -> None:
    """Write plain JSON (no nan, no inf: see `results.result.plain`), atomically; a record gets a checksum of itself."""
    if isinstance(content, dict):
        content = {**content, CHECKSUM: _checksum(content)}
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: str | Path) -> dict[str, Any]:
    """The record that `write_json` wrote, without its checksum, which is compared; one without is read with a warning.

    Raises:
        InputError: the file is missing, no record, or damaged.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is not a regular file: a JSON file is needed")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        written = content.pop(CHECKSUM, None)
        whole = written is None or written == _checksum(content)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is damaged or was written by another program: restore it or delete it") from error
    if not whole:
        raise InputError(f"{path} is damaged or was changed since it was written: restore it or delete it")
    if written is None:
        note_unverified(path)
    return content


def note_unverified(path: Path) -> None:
    """Warn that a file was read which cannot say whether it is whole."""
    warnings.warn(
        InputWarning(
            f"{path} carries no checksum (it was written by release 0.1.0 or by another program): "
            "whether its numbers are whole cannot be said"
        ),
        stacklevel=2,
    )


def _checksum(content: dict[str, Any]) -> str:
    # As it will be read: keys are text then.
    text = json.dumps(json.loads(json.dumps(content)), sort_keys=True)
    return digest.of_parts([text])


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
