"""Values at the points of a grid: computed tile by tile, shared among processes, kept as they are finished."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from landscape import processes
from landscape.problem.problem import Problem
from landscape.progress import Bar
from landscape.shards import Claims, Item
from landscape.surfaces.grid.evaluation import Point
from landscape.surfaces.grid.journal import PointJournal, Records
from landscape.surfaces.grid.quantities import Quantity

_COSTS = ("forward", "backward", "hvp", "seconds")
"""What follows the values in a record: the tile's share of the passes and seconds that were spent."""
_FETCH_SECONDS = 1.0
_BLOCKS = 8
"""Blocks of tiles to a process where processes claim them."""
_PUBLISH_SECONDS = 10.0


class Tiles:
    """The values of quantities at the points of a grid.

    Under torch.distributed the tiles are divided among the processes; where the Problem divides the *examples* instead,
    every process goes through all of them. Process 0 writes.

    Args:
        points: coordinates, in the order of the grid's memory.
        problem: whose passes are counted.
        journal: holds tiles of an earlier run (the same in every process) and keeps new ones; None keeps nothing.
    """

    def __init__(self, points: Sequence[Point], problem: Problem, journal: PointJournal | None = None) -> None:
        self.points, self._problem, self._journal = points, problem, journal
        self._records: Records = dict(journal.records) if journal else {}
        self._shared = processes.world() > 1 and not problem.distributed
        self._passes = problem.passes.forward, problem.passes.backward, problem.passes.hvp
        self._clock = self._published = time.monotonic()
        self._interval = _PUBLISH_SECONDS

    def values(self, quantity: Quantity) -> np.ndarray:
        """(points, columns) as far as they are known, nan elsewhere; see `known`."""
        values = np.full((len(self.points), len(quantity.columns)), np.nan)
        for (number, tile), record in self._records.items():
            if number == quantity.number:
                part = values[tile * quantity.tile : (tile + 1) * quantity.tile]
                part[:] = record[: -len(_COSTS)].reshape(part.shape)
        return values

    def known(self, quantity: Quantity) -> np.ndarray:
        """(points,) bool: which points are finished."""
        known = np.zeros(len(self.points), dtype=bool)
        for number, tile in self._records:
            if number == quantity.number:
                known[tile * quantity.tile : (tile + 1) * quantity.tile] = True
        return known

    def cost(self) -> dict[str, float]:
        """Passes over the examples, and seconds, of this run and of those that it went on from."""
        # Shares of a pass come back to whole passes, in whatever order they are added.
        total = np.round(np.sum([v[-len(_COSTS) :] for v in self._records.values()], axis=0), 6)
        return dict(zip(_COSTS, np.broadcast_to(total, len(_COSTS)).tolist(), strict=True))

    def complete(self, quantity: Quantity, publish: Callable[[], None] = lambda: None) -> None:
        """Compute what is missing of a quantity; `publish` is called now and then to bring a result file up to date."""
        with quantity.opened(), Bar(quantity.name, len(self.points), done=int(self.known(quantity).sum())) as bar:
            for tiles in self._compute(quantity, self._missing(quantity, self._every(quantity))):
                bar.advance(min(tiles * quantity.tile, len(self.points) - bar.done))
                self._publish_when_due(publish)

    def complete_together(self, quantity: Quantity, claims: Claims) -> None:
        """The same among the processes that claim blocks of points; when it returns everything is known here, too."""
        assert self._journal is not None
        journal, tiles = self._journal, self._every(quantity)
        size = -(-len(tiles) // (_BLOCKS * claims.shard.count))

        def item(block: range) -> Item:
            def run() -> None:
                with quantity.opened():
                    for _ in self._compute(quantity, self._missing(quantity, block)):
                        pass

            # What is no longer begun is finished and kept elsewhere.
            name = f"{quantity.name} {block.start}-{block.stop}"
            return Item(name, run, lambda: not (journal.begun and self._missing(quantity, block)))

        def look() -> None:
            journal.look()
            self._records |= journal.records

        blocks = [tiles[i : i + size] for i in tiles[::size]]
        with Bar(quantity.name, len(self.points)) as bar:
            for _ in claims.settle([item(block) for block in blocks], look):
                bar.advance(int(self.known(quantity).sum()) - bar.done)

    def _every(self, quantity: Quantity) -> range:
        """Numbers of the tiles."""
        return range(-(-len(self.points) // quantity.tile))

    def _missing(self, quantity: Quantity, tiles: range) -> list[int]:
        return [t for t in tiles if (quantity.number, t) not in self._records]

    def _compute(self, quantity: Quantity, missing: Sequence[int]) -> Iterator[int]:
        """Compute tiles and keep them, as many at a time as take about a second; yields how many those were."""
        rounds, position = 1, 0
        while position < len(missing):
            started = time.monotonic()
            tiles = missing[position : position + rounds * (processes.world() if self._shared else 1)]
            self._keep(quantity, self._computed(quantity, tiles))
            position += len(tiles)
            yield len(tiles)
            seconds = max(time.monotonic() - started, 1e-4)
            rounds = processes.agree(max(1, min(2 * rounds, int(rounds * _FETCH_SECONDS / seconds))))

    def _computed(self, quantity: Quantity, tiles: Sequence[int]) -> list[tuple[int, np.ndarray]]:
        """The tiles' values, of all processes that share them, fetched from the device at once."""
        mine = tiles[processes.rank() :: processes.world()] if self._shared else tiles
        parts = [self.points[t * quantity.tile : (t + 1) * quantity.tile] for t in mine]
        computed: list[tuple[int, np.ndarray]] = []
        if parts:
            rows = [quantity.evaluate(p).reshape(len(p), len(quantity.columns)) for p in parts]
            ends = np.cumsum([len(p) for p in parts])[:-1]
            computed = list(zip(mine, np.split(torch.cat(rows).double().cpu().numpy(), ends), strict=True))
        return [tile for part in processes.gather(computed) for tile in part] if self._shared else computed

    def _keep(self, quantity: Quantity, tiles: Sequence[tuple[int, np.ndarray]]) -> None:
        share = self._spent() / len(tiles)
        for index, values in tiles:
            record = np.append(values, share)
            self._records[quantity.number, index] = record
            if self._journal and processes.rank() == 0:
                self._journal.append(quantity.number, index, record)

    def _spent(self) -> np.ndarray:
        """Passes of all processes, and seconds, since the last call."""
        now, passes = time.monotonic(), self._problem.passes
        counts = passes.forward, passes.backward, passes.hvp
        here = np.subtract(counts, self._passes) / self._problem.examples
        spent = np.append(np.sum(processes.gather(here), axis=0), now - self._clock)
        self._passes, self._clock = counts, now
        return spent

    def _publish_when_due(self, publish: Callable[[], None]) -> None:
        # Ever more rarely: the whole file is rewritten, and the journal has everything.
        if time.monotonic() - self._published > self._interval:
            publish()
            self._published, self._interval = time.monotonic(), 2 * self._interval
