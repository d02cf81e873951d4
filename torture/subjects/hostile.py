"""Files made to harm: no code runs, nothing outside is read or touched, work is bounded, text is escaped."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np

from torture.hostile_files import HOSTILE, SECRET
from torture.process import run
from torture.verdict import Verdict, judged
from torture.workshop import Workshop

SECONDS, BYTES = 60.0, 3 << 30
_KINDS = {function.__name__: kind for kind, functions in HOSTILE.items() for function in functions}


def choose(seed: int) -> dict[str, Any]:
    """A file; each kind in turn."""
    names = list(_KINDS)
    return {"file": names[seed % len(names)], "seed": seed}


def play(choice: dict[str, Any], workshop: Workshop) -> Verdict:
    """Make it, read it, look at what is outside."""
    name, base = choice["file"], workshop.folder()
    folder, outside = base / "here", base / "outside"
    folder.mkdir()
    outside.mkdir()
    (outside / "secret").write_text(SECRET, encoding="utf-8")
    (outside / "numbers").write_bytes(np.full(3, float(SECRET)).tobytes())
    make = next(f for functions in HOSTILE.values() for f in functions if f.__name__ == name)
    line = make(random.Random(f"hostile {choice['seed']}"), folder, outside, workshop)
    before = _files(outside)
    ended = run(line.split(" "), folder)
    verdict = judged(_KINDS[name], ended, None)
    if _files(outside) != before:
        verdict.fail("files outside were made or changed")
    written = [p for p in (folder / "out").rglob("*") if p.is_file() and not p.is_symlink()]
    if any(SECRET.encode() in p.read_bytes() for p in written):
        verdict.fail("another file's content came out")
    if ended.seconds > SECONDS or ended.peak > BYTES:
        verdict.fail(f"{ended.seconds:.0f} s and {ended.peak / 2**30:.1f} GiB")
    verdict.texts = [*verdict.texts, name, line.replace(str(base), "")[:200]]
    workshop.remove(base)
    return verdict


def _files(folder: Path) -> dict[str, bytes | None]:
    return {str(p): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}
