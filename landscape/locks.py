"""One process at a time writes to a directory or file.

The lock is the operating system's, on an open file, and ends with the process, however that ends: what a killed run
leaves behind is taken over. The file says whose it is: process, host and time.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from landscape import processes, shards
from landscape.errors import InputError
from landscape.files import UNFINISHED

try:
    import fcntl
except ImportError:  # a system without it has no locks
    fcntl = None  # type: ignore[assignment]

_LAST_SECONDS = 1.0


@contextlib.contextmanager
def locked(path: str | Path, *, file: bool = False, shared: bool = False) -> Iterator[None]:
    """Within the context no other process that asks for `path` gets it. Under torch.distributed process 0 holds it.

    Args:
        path: a directory, made where it is missing and removed again if nothing was written to it.
        file: `path` is a file, which need not exist, in such a directory.
        shared: with processes that ask for it so, too (see `landscape.shards`).

    Raises:
        InputError: another process holds it, who is named; or the directory cannot be made.
    """
    held: list[Lock] = []
    processes.on_first(lambda: held.append(Lock(Path(path), file=file, shared=shared)))
    try:
        if held and not file and not shared:
            _remove_leftovers(Path(path))
        yield
    finally:
        for lock in held:
            if lock.is_last():
                if shared and not file:
                    _remove_leftovers(Path(path))
                shutil.rmtree(shards.directory_of(Path(path), file=file), ignore_errors=True)
            lock.release()


def _remove_leftovers(directory: Path) -> None:
    """Remove what killed processes left: unfinished files, also of pictures and of a study, and locks of files.

    A file that another process has locked now is left alone.
    """
    folders = [directory, directory / "figures", directory / "study" / "results"]
    for folder, pattern in itertools.product(folders, (f".*{UNFINISHED}", ".*.lock")):
        for leftover in folder.glob(pattern):
            parts = 1 if leftover.suffix == ".lock" else 2
            with contextlib.suppress(InputError):
                lock = Lock(leftover.with_name(leftover.name.rsplit(".", parts)[0][1:]), file=True)
                if leftover.suffix != ".lock":
                    leftover.unlink(missing_ok=True)
                lock.release()


class Lock:
    """What `locked` holds, for what ends later than its block: it is this process's from here to `release`."""

    def __init__(self, path: Path, *, file: bool = False, shared: bool = False) -> None:
        directory = path.parent if file else path
        self._shared = shared
        self._file = directory / (f".{path.name}.lock" if file else ".lock")
        self._made = [p for p in (directory, *directory.parents) if not p.exists()]
        self._handle: int | None = None
        try:
            directory.mkdir(parents=True, exist_ok=True)
            if fcntl is not None and os.access(directory, os.W_OK | os.X_OK):  # else nothing can be written at all
                self._acquire(path)
        except OSError as error:
            self._unmake()
            raise InputError(f"cannot write to {directory}: {error.strerror}; choose another --out") from error

    def _acquire(self, path: Path) -> None:
        kind = fcntl.LOCK_SH if self._shared else fcntl.LOCK_EX
        # The last of those that share it looks whether it is: a moment's lock of its own.
        deadline = time.monotonic() + (_LAST_SECONDS if self._shared else 0)
        while True:
            handle = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
            try:
                fcntl.flock(handle, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(handle, 200, 0).decode("utf-8", "replace").strip()
                os.close(handle)
                if time.monotonic() < deadline:
                    time.sleep(_LAST_SECONDS / 50)
                    continue
                raise InputError(
                    f"{path}: another process writes there ({holder or 'just started'}): wait until it has ended, or "
                    "choose another --out"
                ) from None
            except OSError:  # a file system without locks
                self._handle = handle
                return
            if self._is_current(handle):
                break
            os.close(handle)  # of a process that ended between the two calls
        self._handle = handle
        with contextlib.suppress(OSError):  # on a full disk the lock holds without a name
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}, {time.ctime()}\n".encode(), 0)

    def _is_current(self, handle: int) -> bool:
        try:
            return os.path.samestat(os.fstat(handle), os.stat(self._file))
        except FileNotFoundError:
            return False

    def is_last(self) -> bool:
        """Whether nobody shares it; nobody will from here on. False where that cannot be said."""
        if self._handle is None:
            return False
        if self._shared:
            try:
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:  # another one, or a file system without locks
                return False
        return True

    def release(self) -> None:
        """Remove the file while it is held, so that nobody takes a removed one for the lock; then let go."""
        if self._handle is not None:
            if self.is_last():
                with contextlib.suppress(OSError):
                    os.unlink(self._file)
            os.close(self._handle)
            self._handle = None
        self._unmake()

    def _unmake(self) -> None:
        for directory in self._made:
            with contextlib.suppress(OSError):  # something was written to it
                directory.rmdir()
