"""The directory that a command writes to: claimed before any work, and what an interrupted command left there."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from landscape.errors import InputError

if TYPE_CHECKING:
    from landscape.shards import Claims, Shard


@dataclass
class Claimed:
    """What the running command writes.

    Attributes:
        directory: it claimed; None before that.
        again: how to go on there after an interruption; None where nothing goes on.
        since: seconds since the epoch.
    """

    directory: Path | None = None
    again: str | None = None
    since: float = 0.0

    def interrupted(self) -> str:
        """What to say when the command is interrupted now: what was kept, where something was."""
        if self.directory is None or self.again is None or not self._kept():
            return "interrupted"
        return f"interrupted: what was finished is kept in {self.directory}; {self.again}"

    def _kept(self) -> bool:
        """Whether a file was written since; hidden ones are locks and files that are not whole."""
        assert self.directory is not None
        with contextlib.suppress(OSError):
            files = (f for f in self.directory.rglob("*") if not f.name.startswith(".") and f.is_file())
            # A second of grace: file systems round times.
            return any(f.stat().st_mtime >= self.since - 1 for f in files)
        return False


def check_writable(directory: Path) -> None:
    """Fail before any work is done where results could not be written.

    Raises:
        InputError: the directory, or the nearest one above it that exists, is a file or not writable.
    """
    existing = directory
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise InputError(f"cannot write to {directory}: {existing} is a file; choose another --out")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"cannot write to {directory}: no permission in {existing}; choose another --out")


def announce(directory: Path) -> None:
    """`check_writable`, and have an interruption say what was kept there. For a command whose work locks the directory.

    Raises:
        InputError: see `check_writable`.
    """
    check_writable(directory)
    context = click.get_current_context()
    claimed = context.find_object(Claimed)
    if claimed is not None:
        resumes = {p.name: p for p in context.command.params}.get("resume")
        claimed.directory, claimed.since = directory, time.time()
        if resumes is not None:
            claimed.again = f"go on with the same command{' and --resume' if resumes.expose_value else ''}"


def claim(directory: Path) -> None:
    """`announce`, and keep other processes from writing there until the command ends.

    Raises:
        InputError: see `check_writable`; another process writes there.
    """
    from landscape.locks import locked

    announce(directory)
    click.get_current_context().with_resource(locked(directory))


def share(directory: Path, shard: Shard | None) -> Claims | None:
    """`claim` for all processes with --shard together, and this one's claims; without a shard, `claim` and None.

    Raises:
        InputError: see `claim`.
    """
    if shard is None:
        claim(directory)
        return None
    from landscape.locks import locked
    from landscape.shards import Claims, directory_of

    announce(directory)
    context = click.get_current_context()
    context.with_resource(locked(directory, shared=True))
    return context.with_resource(Claims(directory_of(directory), shard))
