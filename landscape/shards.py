"""Work divided among processes that see one directory: `--shard i/n`, for job arrays on one machine or on many.

The work is a list of items, each with an outcome on disk. A process goes through its own part of the list, then takes
what is left of the others', then waits for what others are at, to take over what they lose. So every process ends
when everything is done, and one is enough to end it.

An item is computed under a claim: a file that one process alone can make, with its name, machine and time. It is gone
with the item. A claim outlives a process that is killed, and counts as lost

* on the same machine as soon as the system has let go of the lock on the file, which ends with the process;
* on another one, or where the file system has no locks, after `SILENT_SECONDS` in which its time stood still while we
  watched, by our own clock. A holder renews it every `BEAT_SECONDS`.

A lost claim is followed by one with the next number, which again one process alone can make. Should its holder have
been asleep and not dead, an item is computed twice, to the same numbers, and put in its place as a whole twice.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from landscape.errors import InputError
from landscape.results import digest

try:
    import fcntl
except ImportError:  # a system without it has no locks
    fcntl = None  # type: ignore[assignment]

BEAT_SECONDS, SILENT_SECONDS = 15.0, 180.0
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Shard:
    """One of several processes that share the work.

    Attributes:
        index: of this process, from 1.
        count: of the processes.

    Raises:
        InputError: not 1 <= index <= count.
    """

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count <= 10**6:
            raise InputError(f"--shard {self}: I/N with 1 <= I <= N is needed, for example 1/8 to 8/8")

    @classmethod
    def parsed(cls, text: str) -> Shard:
        """From `i/n`.

        Raises:
            InputError: the text is not such a pair.
        """
        try:
            index, count = map(int, text.split("/"))
        except ValueError as error:
            raise InputError(f"--shard {text!r}: I/N is needed, for example 1/8 to 8/8") from error
        return cls(index, count)

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def order(self, items: Sequence[Item]) -> list[Item]:
        """This process's part, then the rest from its end, where the others come last."""
        mine = items[self.index - 1 :: self.count]
        names = {item.name for item in mine}
        return [*mine, *(item for item in reversed(items) if item.name not in names)]


@dataclass(frozen=True)
class Item:
    """A piece of the work.

    Attributes:
        name: unique within its directory of claims.
        run: computes it and puts its outcome in place, as a whole.
        done: whether the outcome is there.
        ready: whether what it needs is there.
    """

    name: str
    run: Callable[[], object]
    done: Callable[[], bool]
    ready: Callable[[], bool] = lambda: True


class Claims:
    """The claims of one process in a directory; a context manager that renews them.

    Args:
        directory: shared by the processes; made here.
        shard: this one.
    """

    def __init__(self, directory: Path, shard: Shard) -> None:
        self.directory, self.shard = directory, shard
        self._held: dict[Path, int] = {}
        self._watched: dict[Path, tuple[int, float]] = {}
        self._left = threading.Event()

    def __enter__(self) -> Claims:
        for link in (
            p for p in (self.directory, self.directory.parent) if p.name.endswith(".shards") and p.is_symlink()
        ):
            raise InputError(f"{link} is a link: claims are made in the directory itself; remove it")
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write to {self.directory}: {error.strerror}; choose another --out") from error
        threading.Thread(target=self._renew, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()

    def settle(self, items: Sequence[Item], look: Callable[[], object] = lambda: None) -> Iterator[Item]:
        """Yield every item once it is done, by whomever.

        Args:
            items: behind what they need.
            look: called before `done` of the items is asked, to see what others have done meanwhile.
        """
        waiting = {item.name: item for item in self.shard.order(items)}
        while waiting:
            look()
            before = len(waiting)
            for item in list(waiting.values()):
                if item.done() or (item.ready() and self._computed(item, look)):
                    del waiting[item.name]
                    yield item
            if len(waiting) == before:
                time.sleep(_POLL_SECONDS)

    def wait_for(self, item: Item) -> None:
        """Until the item is done, by whomever."""
        for _ in self.settle([item]):
            pass

    def once(self, name: str, run: Callable[[], object]) -> None:
        """Run what ends a part of the work in one process; the others wait until it is done.

        Args:
            name: unique to what it is made of: a later call with the same name runs nothing, until the last process
                has left the directory.
            run: as of an `Item`.
        """

        def marked() -> None:
            run()
            os.close(os.open(self._mark(name), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666))

        self.wait_for(Item(name, marked, lambda: self.has_ended(name)))

    def has_ended(self, name: str) -> bool:
        """Whether `once` has run this."""
        return self._mark(name).exists()

    def _mark(self, name: str) -> Path:
        return self.directory / f"{_stem(name)}.done"

    # -- claims ----------------------------------------------------------------------------------------------------

    def _computed(self, item: Item, look: Callable[[], object]) -> bool:
        """Whether the item is done now; False where another process is at it."""
        claim = self._acquire(item.name)
        if claim is None:
            return False
        try:
            look()
            if not item.done():  # else it was done between the two looks
                item.run()
        finally:
            self._release(claim)
        return True

    def _acquire(self, name: str) -> Path | None:
        """The claim that was made; None where another process holds one."""
        stem = _stem(name)
        last = max(map(_number, self.directory.glob(f"{stem}.*")), default=0)
        if last and not self._is_lost(self.directory / f"{stem}.{last}"):
            return None
        path = self.directory / f"{stem}.{last + 1}"
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except FileExistsError:
            return None
        except OSError as error:
            raise InputError(f"cannot write to {self.directory}: {error.strerror}: free space or restore it") from error
        if fcntl is not None:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Last: whoever finds this machine in the file finds the lock, too.
        with contextlib.suppress(OSError):  # on a full disk the claim holds without a name
            os.pwrite(handle, f"{_machine()}\nprocess {os.getpid()}, {time.ctime()}\n".encode(), 0)
        self._held[path] = handle
        return path

    def _is_lost(self, path: Path) -> bool:
        """Whether the holder of a claim is gone."""
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return False  # just released; the next look tells
        try:
            machine = os.pread(handle, 200, 0).decode("utf-8", "replace").partition("\n")[0]
            if machine == _machine() and fcntl is not None:
                try:
                    fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return False
                except OSError:  # a file system without locks
                    pass
                else:
                    return True
            renewed = os.fstat(handle).st_mtime_ns
        finally:
            os.close(handle)
        seen, since = self._watched.setdefault(path, (renewed, time.monotonic()))
        if seen != renewed:
            self._watched[path] = renewed, time.monotonic()
            return False
        return time.monotonic() - since >= SILENT_SECONDS

    def _release(self, path: Path) -> None:
        stem, number = path.name.rpartition(".")[0], _number(path)
        for n in range(1, number + 1):
            with contextlib.suppress(OSError):
                os.unlink(path.with_name(f"{stem}.{n}"))
        os.close(self._held.pop(path))

    def _renew(self) -> None:
        while not self._left.wait(BEAT_SECONDS):
            for path in list(self._held):
                with contextlib.suppress(OSError):
                    os.utime(path)


def directory_of(path: Path, *, file: bool = False) -> Path:
    """Where claims for a directory, or for a file, lie; the last process to leave removes them."""
    return path.with_name(f".{path.name}.shards") if file else path / ".shards"


def _number(path: Path) -> int:
    """Of a claim; 0 of another file."""
    ending = path.name.rpartition(".")[2]
    return int(ending) if ending.isdecimal() else 0


def _stem(name: str) -> str:
    """Of the files of an item: without a dot, which is the number's, and not too long for a file."""
    stem = quote(name, safe="=:,").replace(".", "%2E")
    return stem if len(stem) < 150 else digest.of_parts([name])


def _machine() -> str:
    """What processes whose locks one system keeps have in common."""
    with contextlib.suppress(OSError):
        return f"{socket.gethostname()} {Path('/proc/sys/kernel/random/boot_id').read_text(encoding='ascii').strip()}"
    return socket.gethostname()
