"""Working through the points of a surface: tile by tile, shared among processes, kept as they are finished."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape import processes
from landscape.errors import InputError
from landscape.problem.problem import Problem
from landscape.progress import Bar
from landscape.surfaces.grid.evaluation import Point
from landscape.surfaces.grid.store import Journal, Records

_COSTS = ("forward", "backward", "hvp", "seconds")
"""What follows the values in a record: the tile's share of the passes and seconds that were spent."""
_FETCH_SECONDS = 1.0
_PUBLISH_SECONDS = 10.0


@dataclass(frozen=True)
class Phase:
    """One quantity over the whole grid.

    Attributes:
        number: in the journal.
        name: on the progress bar.
        width: values a point.
        tile: points that are computed together, always the same ones.
        evaluate: points -> (points, width), on any device.
        opened: context in which `evaluate` is called.
    """

    number: int
    name: str
    width: int
    tile: int
    evaluate: Callable[[Sequence[Point]], Tensor]
    opened: Callable[[], AbstractContextManager[None]] = nullcontext


class Processes:
    """The processes that share a surface under torch.distributed; one process where there is no group.

    Points are divided among them; where the Problem divides the *examples* instead, every process goes through all
    points. Process 0 writes.
    """

    def __init__(self, problem: Problem) -> None:
        self.world, self.rank = processes.world(), processes.rank()
        self.share_points = self.world > 1 and not problem._distributed

    @property
    def writes(self) -> bool:
        """Whether this process is the writer."""
        return self.rank == 0

    def agree(self, value: Any) -> Any:
        """The value of process 0, everywhere."""
        if self.world == 1:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box, src=0)
        return box[0]

    def first(self, work: Callable[[], Any]) -> Any:
        """What process 0 found by `work`, everywhere; also an InputError that it raised."""
        if self.world == 1:
            return work()
        outcome: tuple[Any, str | None] = None, None
        if self.rank == 0:
            try:
                outcome = work(), None
            except InputError as error:
                outcome = None, str(error)
        value, message = self.agree(outcome)
        if message is not None:
            raise InputError(message)
        return value

    def agree_tensor(self, tensor: Tensor) -> Tensor:
        """The tensor of process 0, everywhere; in place."""
        if self.world > 1:
            torch.distributed.broadcast(tensor, src=0)
        return tensor

    def mine(self, tiles: Sequence[int]) -> Sequence[int]:
        """The tiles of a round that this process computes."""
        return tiles[self.rank :: self.world] if self.share_points else tiles

    def gather(self, own: Any) -> list[Any]:
        """What each process holds, in the order of their ranks."""
        if self.world == 1:
            return [own]
        everyone: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(everyone, own)
        return everyone

    def together(self, found: list[tuple[int, np.ndarray]]) -> list[tuple[int, np.ndarray]]:
        """The finished tiles of all processes."""
        return [item for part in self.gather(found) for item in part] if self.share_points else found


@dataclass
class Run:
    """One pass over the grid.

    Attributes:
        points: coordinates, in the order of the grid's memory.
        processes: who computes.
        journal: where finished tiles are kept; None keeps nothing.
        problem: whose passes are counted.
        publish: called now and then (process 0) to bring the result file up to date.
    """

    points: list[Point]
    processes: Processes
    journal: Journal | None
    problem: Problem
    publish: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.records: Records = self.processes.agree(dict(self.journal.records) if self.journal else {})
        self._spent = self.problem.passes.forward, self.problem.passes.backward, self.problem.passes.hvp
        self._clock = self._published = time.monotonic()
        self._interval = _PUBLISH_SECONDS

    def values(self, phase: Phase) -> np.ndarray:
        """(points, width) as far as they are known, nan elsewhere; see `known`."""
        found = np.full((len(self.points), phase.width), np.nan)
        for (number, tile), values in self.records.items():
            if number == phase.number:
                part = found[tile * phase.tile : (tile + 1) * phase.tile]
                part[:] = values[: -len(_COSTS)].reshape(part.shape)
        return found

    def known(self, phase: Phase) -> np.ndarray:
        """(points,) bool: which points are finished."""
        found = np.zeros(len(self.points), dtype=bool)
        for number, tile in self.records:
            if number == phase.number:
                found[tile * phase.tile : (tile + 1) * phase.tile] = True
        return found

    def complete(self, phase: Phase) -> None:
        """Compute what is missing of a phase."""
        count = -(-len(self.points) // phase.tile)
        todo = [t for t in range(count) if (phase.number, t) not in self.records]
        rounds, position = 1, 0
        with phase.opened(), Bar(phase.name, len(self.points), done=int(self.known(phase).sum())) as bar:
            while position < len(todo):
                started = time.monotonic()
                together = rounds * (self.processes.world if self.processes.share_points else 1)
                tiles = todo[position : position + together]
                finished = self.processes.together(self._computed(phase, self.processes.mine(tiles)))
                share = self._spent_since() / len(finished)
                for tile, values in finished:
                    self._keep(phase.number, tile, np.append(values, share))
                position += len(tiles)
                bar.advance(min(len(tiles) * phase.tile, len(self.points) - bar.done))
                self._publish_when_due()
                seconds = max(time.monotonic() - started, 1e-4)
                rounds = self.processes.agree(max(1, min(2 * rounds, int(rounds * _FETCH_SECONDS / seconds))))

    def cost(self) -> dict[str, float]:
        """Passes over the examples, and seconds, of this run and of those that it went on from."""
        total = np.sum([v[-len(_COSTS) :] for v in self.records.values()], axis=0)
        return dict(zip(_COSTS, np.broadcast_to(total, len(_COSTS)).tolist(), strict=True))

    def _computed(self, phase: Phase, tiles: Sequence[int]) -> list[tuple[int, np.ndarray]]:
        """The tiles' values, fetched from the device at once."""
        parts = [self.points[t * phase.tile : (t + 1) * phase.tile] for t in tiles]
        if not parts:
            return []
        values = torch.cat([phase.evaluate(p).reshape(len(p), phase.width) for p in parts]).double().cpu().numpy()
        ends = np.cumsum([len(p) for p in parts])[:-1]
        return list(zip(tiles, np.split(values, ends), strict=True))

    def _keep(self, number: int, index: int, values: np.ndarray) -> None:
        self.records[number, index] = values
        if self.journal and self.processes.writes:
            self.journal.append(number, index, values)

    def _spent_since(self) -> np.ndarray:
        """Passes of all processes, and seconds, since the last call."""
        now, passes = time.monotonic(), self.problem.passes
        spent = passes.forward, passes.backward, passes.hvp
        own = np.subtract(spent, self._spent) / self.problem.examples
        delta = np.append(np.sum(self.processes.gather(own), axis=0), now - self._clock)
        self._spent, self._clock = spent, now
        return delta

    def _publish_when_due(self) -> None:
        # Ever more rarely: HDF5 does not reuse the room of a group that is replaced, and the journal has everything.
        if self.processes.writes and time.monotonic() - self._published > self._interval:
            self.publish()
            self._published, self._interval = time.monotonic(), 2 * self._interval
