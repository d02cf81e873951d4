"""Loss surfaces: L(w0 + a d1) on a line and L(w0 + a d1 + b d2) on a plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from landscape.problem.problem import Problem
from landscape.surfaces.directions.directions import Directions
from landscape.surfaces.directions.directions import directions as draw
from landscape.surfaces.grid.run import Processes
from landscape.surfaces.grid.work import Asked, Keeper, Work, header_of, identity_of
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
        batch_size: instead of the probe; 0 keeps the batches as given.
        points_per_launch: instead of the rule (see `landscape.surfaces.grid.choice`).
        file: HDF5 file that keeps the surface from the first point on, in the group `name`; finished points are
            journaled beside it, and a killed run goes on from them, bit for bit.
        name: the group.
        resume: go on with what `file` holds; False starts anew.
        replace_other: replace a surface of another checkpoint or other arguments in `file` instead of refusing.

    Raises:
        InputError: see `surfaces.grids.axis` and `surfaces.directions.directions`; a radius that is not positive; a
            file that holds a surface of another checkpoint, sample or set of arguments.

    Cost: one forward pass a point and dataset; one forward and one backward more with `gradient_norm`; 15 to 60
    Hessian-vector products more with `curvature`. Under torch.distributed the points are shared among the processes.
    """
    asked = Asked(
        directions=directions.name if isinstance(directions, Directions) else directions,
        radius=radius,
        grid=grid,
        seed=seed,
        dimensions=dimensions,
        ranges=ranges,
        spacing=spacing,
        center=center,
        biases=biases,
        gradient_norm=gradient_norm,
        curvature=curvature,
        precision=precision,
    )
    problems = {"": problem, **(others or {})}
    processes = Processes(problem)
    own = directions if isinstance(directions, Directions) else None
    identity = processes.agree(identity_of(problems, asked, own, checkpoints, optimizer))
    keeper = Keeper(Path(file), name, identity, resume, replace_other) if file is not None else None
    finished, header, found = processes.first(keeper.open) if keeper else (None, None, None)
    if finished is not None:
        return finished
    if found is None:
        options: dict[str, Any] = {"count": dimensions, "seed": seed, "biases": biases, "checkpoints": checkpoints}
        options["optimizer"] = optimizer
        found = own or draw(asked.directions, problem, **options)
    found = found.to(problem.weights)
    for vector in found.vectors:
        processes.agree_tensor(vector)
    if header is None:
        header = processes.agree(header_of(problems, found, asked, batch_size, points_per_launch))
        if keeper and processes.writes:
            keeper.begin(header, found)
    work = Work(problems, found, header, asked, identity)
    return work.done(processes, keeper if processes.writes else None)
