"""Progress and cancellation of long calls: a context around them, not a parameter of each.

>>> with landscape.progress.shown():
...     landscape.trace(problem)

On a terminal and in a notebook a bar appears for what takes longer than a second, one below the other where calls nest.
Elsewhere (a log file) a line is written to standard error every 30 seconds: what is done, how fast, how long the rest
takes.
Outside of the context nothing is written. Where processes share the work, the first one speaks for all.
"""

from __future__ import annotations

import contextlib
import datetime
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from contextvars import ContextVar
from typing import Any, TypeVar

from landscape.notebook import Notebook, is_notebook

T = TypeVar("T")
_DELAY, _REDRAW, _INTERVAL = 1.0, 0.1, 30.0


class Cancelled(KeyboardInterrupt):
    """The call was ended by the flag of `cancellable`; like Ctrl-C it passes through every `except Exception`."""


@contextlib.contextmanager
def shown(show: bool = True) -> Iterator[None]:
    """Show the progress of what is called within; `shown(False)` silences a part of it."""
    view = (_current_view.get() or _view()) if show else None
    token = _current_view.set(view)
    try:
        yield
    finally:
        _current_view.reset(token)


def is_shown() -> bool:
    """Whether the caller is within `shown`, in the process that speaks for all."""
    return _current_view.get() is not None and _is_first_process()


@contextlib.contextmanager
def cancellable(flag: threading.Event | None = None) -> Iterator[threading.Event]:
    """Make the calls within end at their next step with `Cancelled` once the flag is set, from whatever thread.

    What a call keeps on disk (points of a surface, epochs of a training) stays; the model is as it was.

    Args:
        flag: looked at in every step; by default a new one.

    Yields:
        The flag.
    """
    flag = flag or threading.Event()
    token = _flag.set(flag)
    try:
        yield flag
    finally:
        _flag.reset(token)


class Bar:
    """Progress of one loop, as a context manager; every step looks at the flag of `cancellable`.

    Args:
        description: the text beside the bar.
        total: number of steps; None where it is not known.
        done: steps that an earlier run had finished.
    """

    def __init__(self, description: str, total: float | None = None, *, done: float = 0) -> None:
        self.description, self.total, self.done, self._before = description, total, done, done
        self.start = time.monotonic()
        self._view: _Terminal | _Lines | Notebook | None = None

    def __enter__(self) -> Bar:
        self._view = _current_view.get() if is_shown() else None
        if self._view is not None:
            self._view.open(self)
        return self

    def __exit__(self, *_: object) -> None:
        if self._view is not None:
            self._view.close(self)

    def advance(self, steps: float = 1) -> None:
        """Count finished steps.

        Raises:
            Cancelled: the flag of `cancellable` is set.
        """
        flag = _flag.get()
        if flag is not None and flag.is_set():
            raise Cancelled(f"{self.description} was cancelled")
        self.done += steps
        if self._view is not None:
            self._view.refresh()

    def note(self, description: str) -> None:
        """Change the text."""
        self.description = description

    def line(self) -> str:
        """What is done, how fast, and how long the rest takes."""
        rate = (self.done - self._before) / max(time.monotonic() - self.start, 1e-9)
        if self.total is None:
            return f"{self.description} {self.done:,.0f} ({rate:.2g}/s)"
        left = f", {datetime.timedelta(seconds=round((self.total - self.done) / rate))} left" if rate > 0 else ""
        return f"{self.description} {self.done:,.0f}/{self.total:,.0f} ({rate:.2g}/s{left})"


def track(items: Iterable[T], description: str, *, total: int | None = None) -> Iterator[T]:
    """Yield the items with a progress bar."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Bar(description, total) as bar:
        for item in items:
            yield item
            bar.advance()


class _Terminal:
    """All open bars in one live display: two of them would overwrite each other."""

    def __init__(self) -> None:
        self._tasks: dict[Bar, Any] = {}
        self._display: Any = None
        self._drawn = 0.0

    def open(self, bar: Bar) -> None:
        self._tasks[bar] = None

    def close(self, bar: Bar) -> None:
        task = self._tasks.pop(bar)
        if task is not None:
            self._display.remove_task(task)
        if self._display is not None and all(t is None for t in self._tasks.values()):
            self._display.stop()
            self._display = None

    def refresh(self) -> None:
        """Draw every bar that is older than a second; the outer ones too, which advance only now and then."""
        now = time.monotonic()
        if now - self._drawn < _REDRAW:
            return
        self._drawn = now
        for bar, task in self._tasks.items():
            if task is not None:
                self._display.update(task, completed=bar.done, description=bar.description)
            elif now - bar.start >= _DELAY:
                if self._display is None:
                    self._display = _rich()
                    self._display.start()
                self._tasks[bar] = self._display.add_task(bar.description, total=bar.total, completed=bar.done)
                self._display.tasks[-1].start_time = bar.start  # the second before it was drawn counts


class _Lines:
    """All open bars in one line of text, now and then."""

    def __init__(self) -> None:
        self._bars: list[Bar] = []
        self._written = -float("inf")

    def open(self, bar: Bar) -> None:
        self._bars.append(bar)

    def close(self, bar: Bar) -> None:
        self._bars.remove(bar)

    def refresh(self) -> None:
        now = time.monotonic()
        if now - max(self._written, self._bars[0].start) < _INTERVAL:
            return
        self._written = now
        lines = [bar.line() for bar in self._bars if now - bar.start >= _DELAY]
        print(f"landscape: {'; '.join(lines)}", file=sys.stderr, flush=True)


_current_view: ContextVar[_Terminal | _Lines | Notebook | None] = ContextVar("current_view", default=None)
_flag: ContextVar[threading.Event | None] = ContextVar("flag", default=None)


def _view() -> _Terminal | _Lines | Notebook:
    if is_notebook():
        return Notebook()
    return _Terminal() if sys.stderr.isatty() else _Lines()


def _is_first_process() -> bool:
    if "torch" not in sys.modules:  # a download needs no torch
        return True
    from landscape import processes

    return processes.rank() == 0


def _rich() -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)
