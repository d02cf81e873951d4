"""Processes that share the work in one directory, some of them killed: the others end it, with the numbers of one."""

from __future__ import annotations

import math
import random
import signal
import time
from pathlib import Path
from typing import Any

from torture.commands import SHARED
from torture.contents import contents, differences
from torture.process import Changes, Ended, Process, die
from torture.subjects.kills import finished
from torture.verdict import Verdict, faults_of
from torture.workshop import Workshop

LEAST, MOST = 2, 4


def choose(seed: int) -> dict[str, Any]:
    """A command; of each process how long after the last one it starts, and when it is killed; what comes late."""
    draw = random.Random(f"shards {seed}")
    shards = [[_wait(draw), _moment(draw)] for _ in range(draw.randint(LEAST, MOST))]
    late = draw.choice(["nothing", "a shard", "the command alone"])
    return {"command": SHARED[seed % len(SHARED)], "shards": shards, "late": late}


def _wait(draw: random.Random) -> float:
    """A share of the seconds of a whole run."""
    return draw.choice([0.0, 0.05, 0.5]) * draw.random()


def _moment(draw: random.Random) -> list[Any] | None:
    """By the clock, or right before the n-th change of the file system; a third is left alone."""
    return draw.choice([None, ["clock", 1.5 * draw.random()], ["change", draw.random()]])


def play(choice: dict[str, Any], workshop: Workshop) -> Verdict:
    """Start all, kill some, wait for all; where none is left, or one comes late, that ends it; compare."""
    name, shards, late, folder = choice["command"], choice["shards"], choice["late"], workshop.folder()
    verdict = Verdict(name)
    ended = _together(name, shards, workshop, folder)
    left = [e for e in ended if e.status != -signal.SIGKILL]
    verdict.fail(*(fault for e in left for fault in faults_of(e, (0,))))
    if left:
        verdict.fail(*_differences(name, workshop, folder, whole=False))
    if late == "nothing" and (not left or _hidden(folder)):  # those that were killed last leave files to the next one
        late = "a shard"
    if late == "a shard":
        one_more = _shard(name, "2/2", workshop, folder).end()
        verdict.fail(*faults_of(one_more, (0,)), *_differences(name, workshop, folder))
    elif late == "the command alone":
        verdict.fail(*finished(name, workshop, folder))
    verdict.texts = verdict.texts or [f"{len(ended)} processes, {len(ended) - len(left)} killed"]
    workshop.remove(folder)
    return verdict


def _together(name: str, shards: list[Any], workshop: Workshop, folder: Path) -> list[Ended]:
    """All processes, each killed at its moment."""
    whole = workshop.whole(name)
    running: list[tuple[float, Process]] = []
    for number, (wait, killed) in enumerate(shards, 1):
        time.sleep(wait * whole.seconds)
        how, share = killed or ("", math.inf)
        before = Changes().then(1 + int(share * whole.changes), die) if how == "change" else None
        process = _shard(name, f"{number}/{len(shards)}", workshop, folder, before=before)
        running.append((share * whole.seconds if how == "clock" else math.inf, process))
    # Who is to be killed first is waited for first.
    return [process.end(after) for after, process in sorted(running, key=lambda pair: pair[0])]


def _shard(name: str, shard: str, workshop: Workshop, folder: Path, **options: Any) -> Process:
    return Process([*workshop.arguments(name), "--shard", shard], folder, **options)


def _differences(name: str, workshop: Workshop, folder: Path, whole: bool = True) -> list[str]:
    """Not `whole`: but for hidden files."""
    out = contents(folder / "out")
    ours = out if whole else {path: content for path, content in out.items() if path not in _hidden(folder)}
    return differences(workshop.whole(name).contents, ours)[:5]


def _hidden(folder: Path) -> set[str]:
    """Claims, locks, and what was unfinished when its process was killed."""
    paths = (p.relative_to(folder / "out") for p in (folder / "out").rglob("*") if p.is_file())
    return {str(path) for path in paths if any(part.startswith(".") for part in path.parts)}
