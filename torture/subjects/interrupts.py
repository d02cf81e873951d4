"""Ctrl-C and SIGTERM at random moments: exit 130 within two seconds and one line; gone on, the right numbers."""

from __future__ import annotations

import random
import signal
from typing import Any

from torture.commands import drawn
from torture.process import Process
from torture.subjects.kills import finished
from torture.verdict import Verdict, faults_of
from torture.workshop import Workshop

SECONDS = 2.0
_IMPORTS = 2.5
"""Seconds that the imports of a cold start take, about."""


def choose(seed: int) -> dict[str, Any]:
    """A command, a signal, a moment; half of them from the first line of cli.py on, imports included."""
    draw = random.Random(f"interrupts {seed}")
    chosen = {"command": drawn(seed), "share": draw.random(), "cold": draw.random() < 0.5}
    return {**chosen, "signal": draw.choice(["SIGINT", "SIGINT", "SIGTERM"])}


def play(choice: dict[str, Any], workshop: Workshop) -> Verdict:
    """Interrupt, look at the end; go on, compare."""
    name, cold, folder = choice["command"], choice["cold"], workshop.folder()
    seconds, number = workshop.whole(name).seconds, getattr(signal, choice["signal"])
    verdict = Verdict(f"{name.split()[0]}, {'from the first import on' if cold else 'at work'}")
    process = Process(workshop.arguments(name, cold=cold), folder, cold=cold)
    if cold:
        process.wait_until_it_listens()
    ended = process.end(choice["share"] * (seconds + _IMPORTS * cold), number)
    faults = faults_of(ended, (0, 130))
    if ended.status == 130:
        said = [line for line in ended.lines if line.startswith("landscape: interrupted")]
        faults += [] if len(said) == 1 else [f"{len(said)} lines say so: {' | '.join(ended.lines)[:300]}"]
    if ended.after is not None and ended.after > SECONDS:
        faults.append(f"ended {ended.after:.1f} s after the signal")
    verdict.fail(*faults, *([] if faults else finished(name, workshop, folder)))
    workshop.remove(folder)
    return verdict
