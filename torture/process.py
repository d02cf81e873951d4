"""A command line in a process of its own: killed, interrupted, short of disk, or left in peace.

Most are forked from this process, which has imported everything: a second of imports would hide what is looked for. Of
every subject some are started as a user starts them (`python cli.py ...`).
"""

from __future__ import annotations

import contextlib
import mmap
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink", "os.chmod")
_POLL = 0.002
_PATIENCE = 120.0
_GRACE = 15.0
"""Seconds in which the processes that a killed one had started must be gone."""


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        status: its exit status, negative for a signal; None where it had to be stopped.
        out: its standard output.
        err: its standard error.
        seconds: that it took.
        after: seconds from the signal that it was sent to its end; None where it was sent none.
        peak: largest resident memory in bytes, of what it waited for too.
        left: whether processes that it had started were still there some seconds later.
    """

    status: int | None
    out: str
    err: str
    seconds: float
    after: float | None
    peak: int
    left: bool = False

    @property
    def lines(self) -> list[str]:
        """Of standard error, without empty ones."""
        return [line for line in self.err.split("\n") if line.strip()]


class Process:
    """A running command line.

    Args:
        arguments: behind `landscape`.
        folder: where it runs; its output is kept beside, not in it.
        cold: start an interpreter of its own.
        before: called in the process that was forked, before the command.
    """

    def __init__(
        self, arguments: Sequence[str], folder: Path, *, cold: bool = False, before: Callable[[], Any] | None = None
    ) -> None:
        self.folder, self.cold, self._start = folder, cold, time.monotonic()
        self._streams = [folder.with_name(f"{folder.name}.{n}{self._start}") for n in ("out", "err")]
        for path in self._streams:  # also of a process that is killed before it opens them
            path.touch()
        if cold:
            with contextlib.ExitStack() as stack:
                out, err = (stack.enter_context(open(p, "wb")) for p in self._streams)
                command = [sys.executable, str(ROOT / "cli.py"), *arguments]
                environment = {**os.environ, "PYTHONPATH": str(ROOT)}
                self.pid = subprocess.Popen(
                    command, cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment,
                    process_group=0,
                ).pid  # fmt: skip
        else:
            sys.stdout.flush()
            self.pid = os.fork()
            if self.pid == 0:
                _become(arguments, folder, self._streams, before)

    def end(
        self, after: float | None = None, number: int = signal.SIGKILL, limit: float | None = None, grace: float = 20.0
    ) -> Ended:
        """Wait for the end, send the signal after so many seconds if it still runs, and stop it at the limit.

        The limit is `patience()` by default.
        A process that was sent an interrupt has `grace` seconds to end.
        """
        limit = patience() if limit is None else limit
        sent, status, usage = None, None, None
        while status is None:
            pid, code, usage = os.wait4(self.pid, os.WNOHANG)
            now = time.monotonic()
            if pid:
                status = os.waitstatus_to_exitcode(code)
            elif after is not None and sent is None and now - self._start >= after:
                os.kill(self.pid, number)
                sent = now
            elif now - self._start > limit or (sent is not None and now - sent > grace):
                break
            else:
                time.sleep(_POLL)
        ended = time.monotonic()
        left = self.stop(reap=status is None)
        out, err = (p.read_bytes().decode("utf-8", "replace") for p in self._streams)
        for path in self._streams:
            path.unlink()
        peak = 1024 * usage.ru_maxrss if usage else 0
        return Ended(status, out, err, ended - self._start, None if sent is None else ended - sent, peak, left)

    def stop(self, reap: bool) -> bool:
        """End what is left of the process and of those that it started; whether those were there after a while."""
        with contextlib.suppress(ProcessLookupError):
            if reap:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
            for _ in range(round(_GRACE / _POLL)):
                os.killpg(self.pid, 0)
                time.sleep(_POLL)
            os.killpg(self.pid, signal.SIGKILL)
            return True
        return False

    def listens(self) -> bool:
        """Whether the first lines of cli.py have been run: SIGTERM is caught, which Python itself does not."""
        if not self.cold:
            return True
        with contextlib.suppress(OSError, StopIteration):
            text = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii")
            caught = next(line for line in text.splitlines() if line.startswith("SigCgt:"))
            return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)
        return True

    def wait_until_it_listens(self) -> None:
        """And count the seconds of `end` from there."""
        while not self.listens() and time.monotonic() - self._start < 60:
            time.sleep(_POLL)
        self._start = time.monotonic()


def patience() -> float:
    """Seconds after which a command counts as one that hangs: the more, the more the machine has to do."""
    return _PATIENCE * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def run(arguments: Sequence[str], folder: Path, **options: Any) -> Ended:
    """Run a command line to its end."""
    return Process(arguments, folder, **options).end()


def _become(arguments: Sequence[str], folder: Path, streams: Sequence[Path], before: Callable[[], Any] | None) -> None:
    """Be the command, in the process that was just forked; does not return."""
    status = 1
    try:
        os.setpgid(0, 0)
        for number, path in zip((1, 2), streams, strict=True):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(folder)
        sys.argv = ["landscape", *arguments]
        import cli

        cli._listen()
        if before is not None:
            before()
        try:
            cli.main(list(arguments))
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
        with contextlib.suppress(BaseException):
            sys.stderr.flush()
        os._exit(status)


# -- what is done in the process -------------------------------------------------------------------------------------


class Changes:
    """Counts what a process does to the file system: opening for writing, renaming, removing, making directories."""

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, 8)

    @property
    def count(self) -> int:
        """So far, also in a process that was forked."""
        return int.from_bytes(self._shared[:8], "little")

    def then(self, number: int, act: Callable[[], Any] = lambda: None) -> Callable[[], None]:
        """For `before`: count, and act right before the change with this number (the first one is 1)."""

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            if event in CHANGES or (event == "open" and _writes(arguments[2])):
                self._shared[:8] = (self.count + 1).to_bytes(8, "little")
                if self.count == number:
                    act()

        return lambda: sys.addaudithook(hook)


def _writes(flags: Any) -> bool:
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def die() -> None:
    """End this process at once."""
    os.kill(os.getpid(), signal.SIGKILL)


def remove(folder: str) -> None:
    """Remove a folder, as somebody else would."""
    shutil.rmtree(folder, ignore_errors=True)


def limit_files(size: int) -> None:
    """No file of this process gets larger: as on a full disk, EFBIG instead of ENOSPC."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
