"""Damaged bytes in every kind of file that is read: the right numbers or one line; never others without a word."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

from torture.contents import contents, differences
from torture.process import Ended, run
from torture.specimens import SPECIMENS
from torture.verdict import Verdict, judged
from torture.workshop import Workshop

DAMAGE = ("bit", "byte", "zeros", "cut", "inserted", "removed", "repeated", "random")
_HASHES = ("sha256", "/checkpoints/", "data_dir")


def choose(seed: int) -> dict[str, Any]:
    """A file, and what happens to it; every kind of file in turn."""
    draw = random.Random(f"damage {seed}")
    kinds = list(SPECIMENS)
    return {"specimen": kinds[seed % len(kinds)], "damage": draw.choice(DAMAGE), "seed": seed}


def play(choice: dict[str, Any], workshop: Workshop) -> Verdict:
    """Damage a copy, read it, compare."""
    name, folder = choice["specimen"], workshop.folder()
    specimen, draw = SPECIMENS[name], random.Random(f"place {choice['seed']}")
    pristine, right = _prepared(name, workshop)
    shutil.copytree(pristine, folder, dirs_exist_ok=True)
    path = draw.choice(sorted(p for pattern in specimen.files for p in folder.glob(pattern) if p.is_file()))
    path.write_bytes(damaged(path.read_bytes(), choice["damage"], draw))
    ended = _read(name, workshop, folder)
    differing = differences(right, contents(folder / "out")) if ended.status == 0 else None
    verdict = judged(name, ended, _but_hashes(differing), untold=specimen.unverified)
    verdict.texts = [t.replace(str(folder), "") for t in verdict.texts] + [str(path.relative_to(folder))]
    workshop.remove(folder)
    return verdict


def damaged(content: bytes, kind: str, draw: random.Random) -> bytes:
    """The bytes with something wrong at a random place; some 1 to 64 bytes of it."""
    changed, at, count = bytearray(content), draw.randrange(max(len(content), 1)), 1 << draw.randrange(7)
    piece = bytes(changed[at : at + count])
    if kind == "bit" and changed:
        changed[at] ^= 1 << draw.randrange(8)
    elif kind == "byte" and changed:
        changed[at] = draw.randrange(256)
    elif kind == "cut":
        del changed[at:]
    elif kind in ("zeros", "removed", "random"):
        new = {"zeros": bytes(len(piece)), "removed": b"", "random": draw.randbytes(len(piece))}[kind]
        changed[at : at + count] = new
    else:
        changed[at:at] = draw.randbytes(count) if kind == "inserted" else piece
    return bytes(changed)


def _prepared(name: str, workshop: Workshop) -> tuple[Path, Any]:
    """The folder with the whole file, and what the command makes of it."""
    if name not in workshop.specimens:
        pristine, folder = workshop.folder(), workshop.folder()
        SPECIMENS[name].make(workshop, pristine)
        shutil.copytree(pristine, folder, dirs_exist_ok=True)
        ended = _read(name, workshop, folder)
        if ended.status != 0:
            raise RuntimeError(f"{name}: {ended.status} {ended.err}")
        workshop.specimens[name] = pristine, contents(folder / "out")
    return workshop.specimens[name]


def _read(name: str, workshop: Workshop, folder: Path) -> Ended:
    return run(SPECIMENS[name].line.format(inputs=workshop.inputs).split(), folder)


def _but_hashes(differing: list[str] | None) -> list[str] | None:
    """Bytes between the numbers may differ, and with them a file's SHA-256."""
    return differing and [d for d in differing if not any(part in d for part in _HASHES)]
