"""Progress in a notebook: one output below the cell, a bar and a line for every open loop, gone when all is done."""

from __future__ import annotations

import html
import sys
import time
from typing import Any, Protocol

DELAY, REDRAW = 1.0, 0.5
"""Seconds before a bar appears, and between two drawings."""


class Loop(Protocol):
    """What is drawn of a loop: see `landscape.progress.Bar`."""

    start: float
    done: float
    total: float | None

    def line(self) -> str:
        """What is done, how fast, and how long the rest takes."""


def is_notebook() -> bool:
    """Whether this process is the kernel of a notebook; IPython in a terminal is none."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return getattr(shell, "kernel", None) is not None


class Notebook:
    """All open bars in one output of the cell."""

    def __init__(self) -> None:
        self._bars: list[Loop] = []
        self._output: Any = None
        self._drawn = -float("inf")

    def open(self, bar: Loop) -> None:
        """Add a bar."""
        self._bars.append(bar)

    def close(self, bar: Loop) -> None:
        """Take a bar away; the last one leaves an empty output."""
        self._bars.remove(bar)
        if not self._bars and self._output is not None:
            self._output.update(_page(""))
            self._output = None

    def refresh(self) -> None:
        """Draw every bar that is older than a second, the outer ones too."""
        now = time.monotonic()
        if now - max(self._drawn, self._bars[0].start + DELAY - REDRAW) < REDRAW:
            return
        self._drawn = now
        page = _page("".join(_row(bar) for bar in self._bars if now - bar.start >= DELAY))
        if self._output is None:
            from IPython.display import display

            self._output = display(page, display_id=True)
        else:
            self._output.update(page)


def _row(bar: Loop) -> str:
    share = "" if bar.total is None else f' value="{bar.done:g}" max="{bar.total:g}"'
    return f"<div><progress{share}></progress> {html.escape(bar.line())}</div>"


def _page(text: str) -> Any:
    from IPython.display import HTML

    return HTML(text)
