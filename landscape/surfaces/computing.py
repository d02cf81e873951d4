"""A surface on its way: what is missing is computed, by one process or by several, checked and saved."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from landscape import processes
from landscape.problem.problem import Problem
from landscape.shards import Claims, Item
from landscape.surfaces import picture_checks, plan
from landscape.surfaces.directions.directions import Directions
from landscape.surfaces.grid import quantities
from landscape.surfaces.grid.evaluation import Choice, GridEvaluation
from landscape.surfaces.grid.journal import PointJournal
from landscape.surfaces.grid.precision import precision_errors
from landscape.surfaces.grid.quantities import Quantity
from landscape.surfaces.grid.tiles import Tiles
from landscape.surfaces.result import Surface


class SurfaceRun:
    """A surface on its way."""

    def __init__(
        self,
        problems: Mapping[str, Problem],
        arguments: Mapping[str, Any],
        identity: Mapping[str, Any],
        plane: Directions,
        header: Mapping[str, Any],
        journal: PointJournal | None = None,
    ) -> None:
        self.problem, self.plane, self.journal = problems[""], plane, journal
        self.choice = Choice(**header["choice"])
        self.axes = [np.array(a, dtype=np.float64) for a in header["axes"]]
        self.evaluation = GridEvaluation(problems, plane.center, plane.vectors, self.choice)
        self.tiles = Tiles(list(itertools.product(*(a.tolist() for a in self.axes))), self.problem, journal)
        self.wanted = [quantities.loss(self.evaluation)]
        if arguments["gradient_norm"]:
            self.wanted.append(quantities.gradient_norm(self.problem, self.evaluation))
        if arguments["curvature"]:
            self.wanted.append(quantities.curvature(self.problem, self.evaluation, arguments["seed"]))
        if draws := arguments.get("noise_draws"):
            self.wanted.append(quantities.sampling_noise(self.problem, self.evaluation, draws, arguments["seed"]))
        empty = _empty(self.problem, plane, self.axes, arguments)
        others, choice = list(problems)[1:], asdict(self.choice)
        self.empty = replace(empty, others=others, choice=choice, identity=dict(identity))

    def finished(self, save: Callable[[Surface], None]) -> Surface:
        """Compute everything that is missing, check the picture, save it."""

        def publish() -> None:
            save(_filled(self.empty, self.tiles, self.wanted))

        publish()
        try:
            for quantity in self.wanted:
                self.tiles.complete(quantity, publish)
        except BaseException:
            if self.journal:
                self.journal.close()
            publish()
            raise
        return self.finish(save)

    def compute(self, claims: Claims) -> None:
        """Compute what is missing together with the other processes."""
        assert self.journal is not None
        try:
            for quantity in self.wanted:
                self.tiles.complete_together(quantity, claims)
        finally:
            self.journal.close()

    def finish(self, save: Callable[[Surface], None]) -> Surface:
        """Check the picture, save the surface, remove its points."""
        surface = _filled(self.empty, self.tiles, self.wanted)
        if errors := precision_errors(self.problem, self.evaluation, self.plane, self.axes):
            surface = replace(surface, facts={**surface.facts, "precision_error": errors})
        surface = replace(surface, checks=picture_checks.check(surface, self.problem, self.evaluation))
        save(surface)
        if self.journal:
            self.journal.close(delete=processes.rank() == 0)
        return surface


def together(
    opened: Callable[[], Surface | PointJournal],
    start: Callable[[PointJournal], Any],
    run: Callable[..., SurfaceRun],
    claims: Claims,
    save: Callable[[Surface], None],
) -> Surface:
    """The surface by several processes: one begins it, all compute its points, one finishes it."""
    kept = opened()
    if isinstance(kept, PointJournal) and not kept.begun:
        settled: list[Surface | PointJournal] = []

        def begin() -> None:
            settled.append(opened())  # another one may have come to the end of all meanwhile
            if isinstance(settled[0], PointJournal):
                start(settled[0])

        waiting = kept
        claims.wait_for(Item("begin", begin, lambda: bool(settled) or waiting.begun))
        kept = opened()
    if isinstance(kept, Surface):
        return kept
    journal = kept
    computing = run(*start(journal), journal)
    computing.compute(claims)
    claims.wait_for(Item("finish", lambda: computing.finish(save), lambda: not journal.begun))
    finished = opened()
    assert isinstance(finished, Surface)
    return finished


def _empty(problem: Problem, plane: Directions, axes: Sequence[np.ndarray], arguments: Mapping[str, Any]) -> Surface:
    """The surface before any of its points is known."""
    nowhere = np.full([len(a) for a in axes], np.nan)
    return Surface(
        x=axes[0],
        y=axes[1] if len(axes) == 2 else None,
        loss=nowhere,
        accuracy=nowhere,
        done=np.zeros(nowhere.shape, dtype=bool),
        marks=None if plane.marks is None else plane.marks.cpu().numpy(),
        residuals=None if plane.residuals is None else plane.residuals.cpu().numpy(),
        unit=plane.unit,
        directions=plane.name,
        radius=max(abs(v) for span in plan.spans(plane, arguments) for v in span),
        facts=plane.facts,
        complete=False,
        arguments=dict(arguments),
        provenance={**problem.provenance(), "has_batch_norm": bool(problem.evaluator.batch_norms)},
    )


def _filled(empty: Surface, tiles: Tiles, wanted: Sequence[Quantity]) -> Surface:
    """The surface with everything that is known so far."""
    shape, (first, *extras) = empty.loss.shape, wanted
    losses, accuracies = np.moveaxis(tiles.values(first).reshape(*shape, -1, 2), (-1, -2), (0, 1))
    columns: dict[str, Any] = {}
    for quantity in extras:
        values = tiles.values(quantity).T.reshape(-1, *shape)
        draws = len(set(quantity.columns)) < len(quantity.columns)
        columns |= {quantity.columns[0]: values} if draws else dict(zip(quantity.columns, values, strict=True))
    cost = tiles.cost()
    return replace(
        empty,
        loss=losses[0],
        accuracy=accuracies[0],
        done=tiles.known(first).reshape(shape),
        other_loss=losses[1:] if empty.others else None,
        other_accuracy=accuracies[1:] if empty.others else None,
        **columns,
        complete=all(bool(tiles.known(q).all()) for q in wanted),
        seconds=cost.pop("seconds"),
        cost=cost,
    )
