"""A disk that is full, or a directory that vanishes, at a random moment: one line; with room, the right numbers."""

from __future__ import annotations

import contextlib
import functools
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torture.commands import drawn
from torture.process import Changes, limit_files, remove, run
from torture.subjects.kills import finished
from torture.verdict import REFUSED, Verdict, faults_of
from torture.workshop import Workshop

KINDS = ("full disk", "full disk", "file too large", "directory vanishes")
_PAGE = 4096


def choose(seed: int) -> dict[str, Any]:
    """A command, and what becomes of its disk."""
    draw = random.Random(f"disk {seed}")
    return {"command": drawn(seed), "kind": draw.choice(KINDS), "share": draw.random()}


def play(choice: dict[str, Any], workshop: Workshop) -> Verdict:
    """Run short of disk, look at the end; give room, go on, compare."""
    name, kind, share, folder = choice["command"], choice["kind"], choice["share"], workshop.folder()
    whole, verdict = workshop.whole(name), Verdict(f"{name.split()[0]}, {kind}")
    sizes = [p.stat().st_size for p in (whole.folder / "out").rglob("*") if p.is_file()]
    arguments = workshop.arguments(name)
    before: Any = None
    disk: contextlib.AbstractContextManager[Any] = contextlib.nullcontext(lambda: None)
    if kind == "full disk":
        if not can_mount():
            verdict.kind += ": not tried, needs root"
            return verdict
        disk = _small_disk(folder, int(1.1 * share * sum(sizes)))
    elif kind == "file too large":
        before = functools.partial(limit_files, int(1.1 * share * max(sizes)))
    else:
        before = Changes().then(1 + int(share * whole.changes), functools.partial(remove, "out"))
    with disk as make_room:
        ended = run(arguments, folder, before=before)
        verdict.fail(*faults_of(ended, (0, 1, 2) if name == "figures" else (0, 2)))
        if ended.status == 2 and verdict.outcome != "failed":
            verdict.outcome, verdict.texts = REFUSED, [ended.lines[-1].replace(str(folder), "")]
        make_room()
        # What was done and then vanished is the remover's: a command that ended well need not have noticed.
        if kind == "directory vanishes":
            remove(str(folder / "out"))
        verdict.fail(*finished(name, workshop, folder))
    workshop.remove(folder)
    return verdict


@functools.cache
def can_mount() -> bool:
    """Whether a small file system can be had: by root on Linux, where that is allowed."""
    if shutil.which("mount") is None:
        return False
    probe = Path("/tmp/torture-mount")
    probe.mkdir(exist_ok=True)
    done = _mount(probe, _PAGE).returncode == 0
    if done:
        subprocess.run(["umount", str(probe)], check=False)
    probe.rmdir()
    return done


def _mount(folder: Path, size: int, *options: str) -> subprocess.CompletedProcess[bytes]:
    how = ",".join((f"size={size}", *options))
    command = ["mount", "-t", "tmpfs", "-o", how, "tmpfs", str(folder)]
    return subprocess.run(command, check=False, capture_output=True)


@contextlib.contextmanager
def _small_disk(folder: Path, size: int) -> Iterator[Any]:
    """The folder on a disk of its own; yields what makes it large."""
    _mount(folder, max(size, _PAGE))
    try:
        yield functools.partial(_mount, folder, 1 << 28, "remount")
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)
