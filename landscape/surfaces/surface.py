"""Loss surfaces: L(w0 + a d1) on a line and L(w0 + a d1 + b d2) on a plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from landscape import processes
from landscape.ball.spread import spread_of
from landscape.errors import InputError
from landscape.locks import locked
from landscape.problem.problem import Problem
from landscape.results import hdf5
from landscape.shards import Claims, Shard, directory_of
from landscape.sharpness.checks import check_loss
from landscape.surfaces import plan, stored
from landscape.surfaces.computing import SurfaceRun, together
from landscape.surfaces.directions.directions import Directions
from landscape.surfaces.directions.directions import directions as draw
from landscape.surfaces.grid.journal import PointJournal
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
    noise_draws: int = 0,
    precision: str = "native",
    batch_size: int | None = None,
    points_per_launch: int | None = None,
    file: str | Path | None = None,
    name: str = "surface",
    resume: bool = True,
    replace_other: bool = False,
    shard: Shard | None = None,
) -> Surface:
    """L(w0 + a d1 + b d2) on a grid, with the checks of `landscape.surfaces.picture_checks`.

    Args:
        problem: what is evaluated, with its BatchNorm policy.
        directions: a kind (see `landscape.surfaces.directions.directions.directions`) or directions made before.
        radius: half-width of every axis, in the unit of the directions; by default 0.07 for multiples of ||w||, 1 for
            multiples of filter or layer norms, and what contains the checkpoints for a plane through checkpoints.
        grid: points per axis, or one number per axis; odd, so that the trained weights are on the grid.
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
        noise_draws: errors of L by the choice of examples at every point, drawn this many times, for
            `landscape.persistence`; 99 are enough.
        precision: "native", "tf32" (on a GPU) or "bfloat16" (autocast, on any device that has it; on a CPU without
            instructions for it slower than float32). The error against native, of a network in half precision against
            float32, is measured at the center, beside it, at the ends of the axes and at the corners:
            `Surface.rounding` is what differences owe to it, and no check claims one that is smaller.
        batch_size: instead of the rule; 0 keeps the batches as given.
        points_per_launch: instead of the rule (for both see `landscape.surfaces.grid.choice`).
        file: HDF5 file that keeps the surface from the first point on, in the group `name`; finished points are
            journaled beside it, and a killed run goes on from them, bit for bit.
        name: the group.
        resume: go on with what `file` holds; False starts over.
        replace_other: replace a surface of another checkpoint or other arguments in `file` instead of refusing.
        shard: share the points with other processes that were given the same `file` and everything else (see
            `landscape.shards`); each returns the whole surface when it is finished.

    Raises:
        InputError: see `surfaces.grid.axes.axis` and `surfaces.directions.directions.directions`; a loss at the weights
            that is not finite, a radius that is not positive; a file that holds a surface of another checkpoint, sample
            or set of arguments, or that another process writes.

    Cost: one forward pass per point and dataset, and four to six for the checks (one of them where other batches than
    those given are chosen, one where the center is not the lowest point); one forward and one backward more with
    `gradient_norm`; one forward more with `noise_draws`; 20 to 60 Hessian-vector products more with `curvature`, up to
    150 at some points. Under torch.distributed the points are shared among the processes.
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
    if noise_draws:  # absent where not asked for: older files hold no such argument
        arguments["noise_draws"] = noise_draws
    plan.check(arguments)
    problems = {"": problem, **(others or {})}
    ready = directions if isinstance(directions, Directions) else None
    spread = spread_of(problem.weights) is not None
    if spread and file is not None:
        raise InputError("a surface of a sharded model is not resumed from a file: leave out file, and save the result")
    identity = processes.agree(stored.identity_of(problems, arguments, ready, checkpoints, optimizer))
    if shard is not None and (file is None or not resume or processes.world() > 1):
        raise InputError("shards share a file, and go on with what is there: give file and resume; without torchrun")

    def start(journal: PointJournal | None) -> tuple[Directions, Mapping[str, Any]]:
        """What the journal holds of directions and header, or new ones."""
        plane = (journal.directions if journal else None) or ready
        if plane is None:
            sources: dict[str, Any] = {"checkpoints": checkpoints, "optimizer": optimizer}
            plane = draw(arguments["directions"], problem, count=dimensions, seed=seed, biases=biases, **sources)
        plane = plane.to(problem.weights)
        if not spread:
            for vector in plane.vectors:
                processes.broadcast(vector)
        header = journal.header if journal else None
        if header is None:
            loss = problem.loss()
            check_loss(loss)
            header = processes.agree(
                plan.header(problems, plane, arguments, batch_size, points_per_launch, float(loss))
            )
            if journal and processes.rank() == 0:
                journal.begin(header, plane)
        return plane, header

    if file is None:
        return SurfaceRun(problems, arguments, identity, *start(None)).finished(_nowhere)
    path, options = Path(file), {"resume": resume, "replace_other": replace_other, "shared": shard is not None}

    def opened() -> Surface | PointJournal:
        return processes.on_first(lambda: stored.opened(path, name, identity, **options))

    save = partial(_save, path, name) if processes.rank() == 0 else _nowhere
    with locked(file, file=True, shared=shard is not None):
        kept = opened()
        if isinstance(kept, Surface):
            return kept
        if shard is None:
            return SurfaceRun(problems, arguments, identity, *start(kept), kept).finished(save)
        with Claims(directory_of(path, file=True) / name.replace("/", "-"), shard) as claims:
            return together(opened, start, partial(SurfaceRun, problems, arguments, identity), claims, save)


def _save(path: Path, name: str, surface: Surface) -> None:
    hdf5.save(path, {name: surface})


def _nowhere(_surface: Surface) -> None:
    """Save nothing: no file was named, or another process writes it."""
