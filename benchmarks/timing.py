"""Interleaved timing: arms are run in turn, round by round, and compared by medians of ratios within a round."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from landscape.allocator import keep_freed_memory

keep_freed_memory()  # for all arms: ratios of small networks hang on the state that the allocator happens to be in


def interleaved(
    arms: Mapping[str, Callable[[], object]], rounds: int = 7, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of every arm in every round, after one round of warm-up; the order turns with the round.

    Args:
        arms: name -> what is timed; on a GPU it must end with a synchronization.
        rounds: counted rounds.
        clock: `time.perf_counter` (wall) or `time.process_time` (CPU time, for a machine that others use too).
    """
    names = list(arms)
    seconds: dict[str, list[float]] = {n: [] for n in names}
    for name in names:
        arms[name]()
    for r in range(rounds):
        for name in names[r % len(names) :] + names[: r % len(names)]:
            start = clock()
            arms[name]()
            seconds[name].append(clock() - start)
    return seconds


def ratio(seconds: Mapping[str, list[float]], arm: str, base: str) -> float:
    """Median over rounds of arm / base."""
    return statistics.median(a / b for a, b in zip(seconds[arm], seconds[base], strict=True))


@dataclass(frozen=True)
class Ratio:
    """Median over rounds with its 95% interval (bootstrap over the rounds)."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def verdict(self, bar: float) -> str:
        """Whether the whole interval lies on one side of the bar."""
        return "yes" if self.high <= bar else "no" if self.low > bar else "undecided"


def palindromes(
    groups: Mapping[str, Mapping[str, Callable[[], object]]],
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
    least: int = 5,
) -> dict[str, dict[str, list[float]]]:
    """Seconds of every arm of every group in every round: group -> arm -> one sum of two runs a round.

    What a machine does to a timing drifts over seconds and minutes. The arms that are compared with each other run
    close together, each twice, forth and back (A B C, C B A), so that a drift within a round cancels.

    Args:
        groups: group -> arm -> what is timed; on a GPU it must end with a synchronization.
        seconds: rounds are begun for so long, by the wall clock.
        clock: `time.perf_counter` (wall) or `time.process_time` (CPU time, for a machine that others use too).
        least: rounds that are made at least.
    """
    times: dict[str, dict[str, list[float]]] = {g: {a: [] for a in arms} for g, arms in groups.items()}
    for arms in groups.values():
        for run in arms.values():
            run()
    begun, rounds = time.perf_counter(), 0
    while rounds < least or time.perf_counter() - begun < seconds:
        for group, arms in groups.items():
            spent = dict.fromkeys(arms, 0.0)
            order = list(arms) if rounds % 2 == 0 else list(reversed(arms))
            for arm in (*order, *reversed(order)):
                start = clock()
                arms[arm]()
                spent[arm] += clock() - start
            for arm, value in spent.items():
                times[group][arm].append(value)
        rounds += 1
    return times


def interval(a: list[float], b: list[float], draws: int = 4000) -> Ratio:
    """Median of a / b, round by round."""
    import numpy as np

    from landscape.statistics import bootstrap

    e = bootstrap(np.median, np.asarray(a) / np.asarray(b), draws=draws, expanded=False)
    return Ratio(e.value, e.low, e.high)


def machine() -> str:
    """One line on what this ran on."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    policy = os.environ["OMP_WAIT_POLICY"]
    return f"torch {torch.__version__}, Python {platform.python_version()}, {device}, OMP_WAIT_POLICY={policy}"


def table(rows: list[list[object]], header: list[str]) -> str:
    """A Markdown table."""
    body = [[f"{c:.3g}" if isinstance(c, float) else str(c) for c in row] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *body])
