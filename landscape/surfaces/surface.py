"""Loss surfaces: L(w0 + a d1) on a line and L(w0 + a d1 + b d2) on a plane."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from landscape import processes
from landscape.locks import locked
from landscape.problem.problem import Problem
from landscape.results import hdf5
from landscape.sharpness.checks import check_loss
from landscape.surfaces import picture_checks, plan, stored
from landscape.surfaces.directions.directions import Directions
from landscape.surfaces.directions.directions import directions as draw
from landscape.surfaces.grid import quantities
from landscape.surfaces.grid.evaluation import Choice, GridEvaluation
from landscape.surfaces.grid.journal import PointJournal
from landscape.surfaces.grid.precision import precision_errors
from landscape.surfaces.grid.quantities import Quantity
from landscape.surfaces.grid.tiles import Tiles
from landscape.surfaces.result import Surface

__all__ = ["Surface", "surface"]


def surface(
    problem: Problem,
    directions: str | Directions = "gaussian",
    radius: float | None = None,
    grid: int | Sequence[int] = 41,
    seed: int = 0,
    *,
    dimensions: int = 2,
    ranges: Sequence[tuple[float, float]] | None = None,
    spacing: str = "linear",
    center: bool = True,
    biases: bool = False,
    checkpoints: Sequence[Tensor] = (),
    optimizer: Mapping[str, Any] | None = None,
    others: Mapping[str, Problem] | None = None,
    gradient_norm: bool = False,
    curvature: bool = False,
    precision: str = "native",
    batch_size: int | None = None,
    points_per_launch: int | None = None,
    file: str | Path | None = None,
    name: str = "surface",
    resume: bool = True,
    replace_other: bool = False,
) -> Surface:
    """L(w0 + a d1 + b d2) on a grid, with the checks of `landscape.surfaces.picture_checks`.

    Args:
        problem: what is evaluated, with its BatchNorm policy.
        directions: a kind (see `landscape.surfaces.directions.directions.directions`) or directions made before.
        radius: half-width of every axis, in the unit of the directions; by default 0.07 for multiples of ||w||, 1 for
            multiples of filter or layer norms, and what contains the checkpoints for a plane through checkpoints.
        grid: points an axis, or one number an axis; odd, so that the trained weights are on the grid.
        seed: of the directions.
        dimensions: 1 for a line, 2 for a plane.
        ranges: (low, high) an axis instead of the radius; they need not be symmetric.
        spacing: "linear" or "log" (geometric on either side of the center).
        center: False allows grids without the trained weights.
        biases: whether normalized directions move biases and norm parameters.
        checkpoints: weights (d,) of checkpoints, for the kinds "trajectory" and "checkpoints".
        optimizer: state_dict of a torch optimizer, for the kind "optimizer".
        others: name -> Problem of the same model: more datasets, evaluated at the same points.
        gradient_norm: ||grad L|| at every point.
        curvature: smallest and largest Hessian eigenvalue at every point: does the picture hide negative curvature?
        precision: "native", "tf32" or "bfloat16" (on a GPU); the error against native at the center and corners is
            measured and stored.
        batch_size: instead of the rule; 0 keeps the batches as given.
        points_per_launch: instead of the rule (for both see `landscape.surfaces.grid.choice`).
        file: HDF5 file that keeps the surface from the first point on, in the group `name`; finished points are
            journaled beside it, and a killed run goes on from them, bit for bit.
        name: the group.
        resume: go on with what `file` holds; False starts anew.
        replace_other: replace a surface of another checkpoint or other arguments in `file` instead of refusing.

    Raises:
        InputError: see `surfaces.grid.axes.axis` and `surfaces.directions.directions.directions`; a loss at the weights
            that is not finite, a radius that is not positive; a file that holds a surface of another checkpoint, sample
            or set of arguments, or that another process writes.

    Cost: one forward pass a point and dataset, and four for the checks; one forward and one backward more with
    `gradient_norm`; 20 to 60 Hessian-vector products more with `curvature`, up to 150 at some points. Under
    torch.distributed the points are shared among the processes.
    """
    arguments: dict[str, Any] = {
        "directions": directions.name if isinstance(directions, Directions) else directions,
        "radius": radius,
        "grid": grid,
        "seed": seed,
        "dimensions": dimensions,
        "ranges": ranges,
        "spacing": spacing,
        "center": center,
        "biases": biases,
        "gradient_norm": gradient_norm,
        "curvature": curvature,
        "precision": precision,
    }
    plan.check(arguments)
    problems = {"": problem, **(others or {})}
    ready = directions if isinstance(directions, Directions) else None
    identity = processes.agree(stored.identity_of(problems, arguments, ready, checkpoints, optimizer))
    with nullcontext() if file is None else locked(file, file=True):
        journal: PointJournal | None = None
        save: Callable[[Surface], None] = _nowhere
        if file is not None:
            path, options = Path(file), {"resume": resume, "replace_other": replace_other}
            kept = processes.on_first(lambda: stored.opened(path, name, identity, **options))
            if isinstance(kept, Surface):
                return kept
            journal = kept
            if processes.rank() == 0:
                save = partial(_save, path, name)
        plane = (journal.directions if journal else None) or ready
        if plane is None:
            sources: dict[str, Any] = {"checkpoints": checkpoints, "optimizer": optimizer}
            plane = draw(arguments["directions"], problem, count=dimensions, seed=seed, biases=biases, **sources)
        plane = plane.to(problem.weights)
        for vector in plane.vectors:
            processes.broadcast(vector)
        header = journal.header if journal else None
        if header is None:
            check_loss(problem.evaluate().loss)
            header = processes.agree(plan.header(problems, plane, arguments, batch_size, points_per_launch))
            if journal and processes.rank() == 0:
                journal.begin(header, plane)
        return _computed(problems, plane, header, arguments, identity, journal, save)


def _computed(
    problems: Mapping[str, Problem],
    plane: Directions,
    header: Mapping[str, Any],
    arguments: Mapping[str, Any],
    identity: Mapping[str, Any],
    journal: PointJournal | None,
    save: Callable[[Surface], None],
) -> Surface:
    """Compute everything that is missing, check the picture, save it."""
    problem, choice = problems[""], Choice(**header["choice"])
    axes = [np.array(a, dtype=np.float64) for a in header["axes"]]
    evaluation = GridEvaluation(problems, plane.center, plane.vectors, choice)
    tiles = Tiles(list(itertools.product(*(a.tolist() for a in axes))), problem, journal)
    wanted = [quantities.loss(evaluation)]
    if arguments["gradient_norm"]:
        wanted.append(quantities.gradient_norm(problem, evaluation))
    if arguments["curvature"]:
        wanted.append(quantities.curvature(problem, evaluation, arguments["seed"]))
    empty = _empty(problem, plane, axes, arguments)
    empty = replace(empty, others=list(problems)[1:], choice=asdict(choice), identity=dict(identity))

    def publish() -> None:
        save(_filled(empty, tiles, wanted))

    publish()
    try:
        for quantity in wanted:
            tiles.complete(quantity, publish)
    except BaseException:
        if journal:
            journal.close()
        publish()
        raise
    surface = _filled(empty, tiles, wanted)
    if choice.precision != "native":
        errors = precision_errors(problem, evaluation, plane, axes)
        surface = replace(surface, facts={**surface.facts, "precision_error": errors})
    surface = replace(surface, checks=picture_checks.check(surface, problem, evaluation))
    save(surface)
    if journal:
        journal.close(delete=processes.rank() == 0)
    return surface


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
    columns = {n: c.reshape(shape) for q in extras for n, c in zip(q.columns, tiles.values(q).T, strict=True)}
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


def _save(path: Path, name: str, surface: Surface) -> None:
    hdf5.save(path, {name: surface})


def _nowhere(_surface: Surface) -> None:
    """Save nothing: no file was named, or another process writes it."""
