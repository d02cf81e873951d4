"""Surfaces of several checkpoints on one grid, so that they can be compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from landscape.errors import InputError
from landscape.problem.problem import Problem
from landscape.sharpness.checks import check_loss
from landscape.surfaces.directions.directions import Directions, described
from landscape.surfaces.directions.directions import directions as draw
from landscape.surfaces.result import Surface
from landscape.surfaces.surface import surface


def compare_surfaces(
    problems: Mapping[str, Problem], directions: str = "gaussian", *, absolute: bool = False, **arguments: Any
) -> dict[str, Surface]:
    """The surfaces of several checkpoints on one grid, so that they can be compared.

    Every checkpoint gets directions from the same seed and the same coordinates.

    Args:
        problems: name -> problem.
        directions: see `landscape.surface`.
        absolute: move all of them by the *first* one's directions, so that a coordinate is the same distance in weight
            space for all; else each axis counts multiples of the checkpoint's own norms.
        **arguments: of `landscape.surface`; with `file` each surface is kept there under its name.

    Raises:
        InputError: checkpoints of different architectures, naming the first tensor that differs; one whose loss is not
            finite.
    """
    first = next(iter(problems.values()))
    for name, problem in problems.items():
        check_same_architecture(first, problem, name)
    for problem in problems.values():  # before the first surface is computed
        check_loss(problem.evaluate().loss)
    shared: Directions | None = None
    if absolute:
        options = {k: arguments[k] for k in ("seed", "biases") if k in arguments}
        shared = draw(directions, first, count=arguments.get("dimensions", 2), **options)
    surfaces = {}
    for name, problem in problems.items():
        plane = directions if shared is None else described(_around(shared, problem), problem.parameters)
        kept = {"name": name} if "file" in arguments else {}
        surfaces[name] = surface(problem, plane, **{**arguments, **kept})
    return surfaces


def check_same_architecture(first: Problem, other: Problem, name: str = "the other checkpoint") -> None:
    """Raise InputError naming the first tensor in which two networks differ."""
    mine, theirs = ({s.name: tuple(s.shape) for s in p.parameters} for p in (first, other))
    require_same_shapes(mine, theirs, name)


def require_same_shapes(mine: Mapping[str, tuple[int, ...]], theirs: Mapping[str, tuple[int, ...]], name: str) -> None:
    """Raise InputError naming the first tensor in which the shapes of two networks differ; `name`: of theirs."""
    for tensor in [*mine, *(t for t in theirs if t not in mine)]:
        here, there = mine.get(tensor), theirs.get(tensor)
        if here != there:
            raise InputError(
                f"{name} is another architecture: {tensor} is {there or 'missing'} there, {here or 'missing'} here; "
                "checkpoints of one architecture are needed"
            )


def _around(shared: Directions, problem: Problem) -> Directions:
    return replace(shared.to(problem.weights), facts={})
