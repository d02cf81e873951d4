"""Two or three processes in one directory: one works, the others are refused or find it done; the right numbers."""

from __future__ import annotations

import random
import time
from typing import Any

from torture.commands import drawn
from torture.process import Process
from torture.subjects.kills import finished, killed
from torture.verdict import Verdict, faults_of
from torture.workshop import Workshop

_REFUSALS = ("another process writes there", "already holds a run")


def choose(seed: int) -> dict[str, Any]:
    """A command, how much later the others start, and whether they find a directory that a killed one left."""
    draw = random.Random(f"together {seed}")
    waits = [draw.random() * draw.choice([0.05, 1.0]) for _ in range(draw.randint(1, 2))]
    return {"command": drawn(seed), "waits": waits, "killed": draw.choice([None, draw.random()])}


def play(choice: dict[str, Any], workshop: Workshop) -> Verdict:
    """Start all, wait for all, go on, compare."""
    name, folder = choice["command"], workshop.folder()
    seconds = workshop.whole(name).seconds
    verdict = Verdict(name.split()[0])
    if choice["killed"] is not None:
        killed(name, "change", choice["killed"], workshop, folder)
    processes = []
    for wait in (0.0, *choice["waits"]):
        time.sleep(wait * seconds)
        processes.append(Process(workshop.arguments(name, resumed=True), folder))
    every = [process.end() for process in processes]
    verdict.fail(*(fault for ended in every for fault in faults_of(ended)))
    refused = [ended.lines[-1] for ended in every if ended.status == 2 and ended.lines]
    verdict.fail(*(f"refused: {line}" for line in refused if not any(words in line for words in _REFUSALS)))
    if all(ended.status == 2 for ended in every):
        verdict.fail("all were refused")
    verdict.fail(*finished(name, workshop, folder))
    workshop.remove(folder)
    return verdict
