"""SIGKILL at random moments of every command line, again and again; the end is that of a run that was never killed."""

from __future__ import annotations

import random
import signal
from pathlib import Path
from typing import Any

from torture.commands import drawn
from torture.contents import contents, differences
from torture.process import Changes, Ended, Process, die
from torture.verdict import Verdict, faults_of
from torture.workshop import Workshop

LEAST_KILLS, MOST_KILLS = 3, 9


def choose(seed: int) -> dict[str, Any]:
    """A command, and moments: by the clock, or right before the n-th change of the file system."""
    draw = random.Random(f"kills {seed}")
    moments = [[draw.choice(["clock", "change"]), draw.random()] for _ in range(draw.randint(LEAST_KILLS, MOST_KILLS))]
    return {"command": drawn(seed), "moments": moments, "cold": draw.random() < 0.08}


def play(choice: dict[str, Any], workshop: Workshop) -> Verdict:
    """Kill, go on, kill, ..., go on to the end; compare."""
    name, cold, folder = choice["command"], choice["cold"], workshop.folder()
    verdict = Verdict(name.split()[0], tries=0)
    for how, share in choice["moments"]:
        ended = killed(name, how, share, workshop, folder, cold=cold)
        if ended.status == -signal.SIGKILL:
            verdict.tries += 1
            if ended.left:
                return verdict.fail(f"processes were left after {verdict.tries} kills")
        elif faults := faults_of(ended):
            return verdict.fail(*(f"after {verdict.tries} kills: {f}" for f in faults))
    verdict.fail(*finished(name, workshop, folder, cold=cold))
    workshop.remove(folder)
    return verdict


def killed(name: str, how: str, share: float, workshop: Workshop, folder: Path, *, cold: bool = False) -> Ended:
    """Start, or go on with, a command and kill it where it still runs at that share of a whole run."""
    whole, resumed = workshop.whole(name), (folder / "out").exists()
    arguments = workshop.arguments(name, resumed=resumed, cold=cold)
    if how == "change" and not cold:
        number = 1 + int(share * whole.changes)
        return Process(arguments, folder, before=Changes().then(number, die)).end()
    process = Process(arguments, folder, cold=cold)
    if cold:  # imports change nothing; some kills hit them all the same
        process.wait_until_it_listens()
        return process.end((2.5 + 1.5 * whole.seconds) * share)
    return process.end(whole.seconds * share)


def finished(name: str, workshop: Workshop, folder: Path, *, cold: bool = False) -> list[str]:
    """What is wrong once the command has gone on to its end with what is there."""
    whole = workshop.whole(name)
    resumed = (folder / "out").exists()
    ended = Process(workshop.arguments(name, resumed=resumed, cold=cold), folder, cold=cold).end()
    if faults := faults_of(ended, (0,)):
        return [f"gone on: {f}" for f in faults]
    return [f"gone on: {d}" for d in differences(whole.contents, contents(folder / "out"))[:5]]
