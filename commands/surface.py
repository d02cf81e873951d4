"""`landscape surface CKPT...`: the loss on a line or a plane through the weights."""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from commands import options
from commands.claimed import share
from commands.minima import NOISE_DRAWS, minima_of
from commands.options import OutputOptions, ProblemOptions, option
from commands.ranges import POSITIVE, Whole
from landscape.errors import InputError, unknown

if TYPE_CHECKING:
    from landscape.problem.problem import Problem
    from landscape.shards import Shard
    from trainers.rebuild import Subject

THROUGH = ("trajectory", "checkpoints")
"""Kinds of directions that make one surface of all checkpoints."""


@dataclass(frozen=True)
class GridOptions:
    """Where the loss is evaluated, and what besides it."""

    directions: str = option(
        "gaussian, filter, layer, hessian, hessian-ends, gradient, optimizer; or through all CKPT: trajectory (the "
        "last one is the center), checkpoints (the first one is).",
        default="gaussian",
        metavar="NAME",
    )
    grid: str = option("Points per axis; odd.", default="41", metavar="N[xM]")
    radius: float | None = option("Half-width; default 0.07 of ||w||, or 1 filter norm.", type=POSITIVE)
    ranges: tuple[str, ...] = option(
        "Instead of the radius, once per axis.", "--range", multiple=True, metavar="LOW,HIGH"
    )
    dimensions: int = option("2: a plane; 1: a profile.", type=Whole(1, 2), default=2)
    spacing: str = option(
        "Spacing of the points: even, or geometric on either side of the center.",
        type=click.Choice(["linear", "log"]),
        default="linear",
    )
    no_center: bool = option("Allow grids without the trained weights (even numbers).", default=False)
    biases: bool = option("Normalized directions move biases and norm parameters too.", default=False)
    draws: int = option("Random directions; more than 1: a band around a profile.", type=Whole(), default=1)
    subsets: int = option("Disjoint parts of the data; more than 1: a band around a profile.", type=Whole(), default=1)
    both_splits: bool = option("Evaluate the other split at the same points.", default=False)
    gradient_norm: bool = option("||grad L|| at every point.", default=False)
    curvature: bool = option("lambda_min and lambda_max at every point.", default=False)
    persistence: bool = option(
        "Minima, saddles and what noise would give beside them; one more forward pass per point.", default=False
    )
    absolute: bool = option("With several CKPT: move all along the directions of the first.", default=False)
    gif: bool = option("With --directions trajectory: figures/trajectory.gif, one frame per checkpoint.", default=False)
    mp4: bool = option("The same as figures/trajectory.mp4, where ffmpeg is installed.", default=False)
    precision: str = option(
        "Precision of the forward passes (tf32: on a GPU); its error is measured, and no check claims less than it.",
        type=click.Choice(["native", "tf32", "bfloat16"]),
        default="native",
    )

    @property
    def band(self) -> bool:
        """Whether several directions or parts of the data make a band."""
        return self.draws != 1 or self.subsets != 1

    def check(self, checkpoints: int, shard: Shard | None) -> None:
        """Refuse options that do not go together."""
        if self.band and shard is not None:
            raise InputError("--shard shares the points of a surface: a band (--draws, --subsets) has none to share")
        if self.band and (self.dimensions == 2 or not (checkpoints == 1 or self.directions in THROUGH)):
            raise InputError(
                "--draws and --subsets make a band of one checkpoint's profile: give --dimensions 1, one CKPT"
            )
        maps = self.gradient_norm or self.curvature or self.persistence
        if self.band and (self.ranges or self.no_center or maps):
            raise InputError(
                "a band takes --radius, --grid and --spacing; no --range, --no-center, maps or --persistence"
            )
        if (self.gif or self.mp4) and (self.directions != "trajectory" or self.dimensions == 1):
            raise InputError(
                "--gif and --mp4 show a training run over its plane: give --directions trajectory and two dimensions"
            )
        if self.mp4 and shutil.which("ffmpeg") is None:
            raise InputError("--mp4 needs ffmpeg, which is not on the PATH: install it, or take --gif")

    def line(self) -> dict[str, Any]:
        """What `landscape.profiles` and `landscape.surface` both take."""
        shared = {k: getattr(self, k) for k in ("directions", "radius", "spacing", "biases")}
        return {**shared, "grid": _sizes(self.grid, self.dimensions)}

    def plane(self) -> dict[str, Any]:
        """What `landscape.surface` takes."""
        shared = {k: getattr(self, k) for k in ("dimensions", "gradient_norm", "curvature", "precision")}
        ranges = [_range(text) for text in self.ranges] or None
        noise = {"noise_draws": NOISE_DRAWS} if self.persistence else {}
        return {**self.line(), **shared, **noise, "center": not self.no_center, "ranges": ranges}


@click.command("surface")
@click.argument("checkpoints", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="CKPT...")
@options.group(GridOptions, "grid")
@options.problem()
@options.resume
@options.shard
@options.output("Default: surface/ beside the checkpoint, surfaces/ for several.")
def command(
    checkpoints: tuple[Path, ...],
    grid: GridOptions,
    problem: ProblemOptions,
    output: OutputOptions,
    resume: bool,
    shard: Shard | None,
) -> None:
    """Evaluate the loss on a grid around checkpoints and draw it, with checks of the picture.

    Writes surface.h5, surface.json and figures/ to one directory. Finished points are safe on disk: --resume goes on
    with what is there. Under torchrun the points are shared among its processes, with --shard among jobs that know of
    each other by the directory alone; --shard always goes on with what is there.
    """
    from figures.drawing import surface as drawing
    from figures.page.terminal import persistence_text, surface_text
    from landscape.files import write_json
    from landscape.results import hdf5
    from landscape.surfaces import plan
    from landscape.surfaces.directions.directions import KINDS

    if grid.directions not in KINDS:
        raise unknown("kind of directions", grid.directions, KINDS)
    single = len(checkpoints) == 1 or grid.directions in THROUGH
    directory = output.directory(checkpoints[0].parent / "surface" if single else Path("surfaces"))
    grid.check(len(checkpoints), shard)
    arguments = {**(grid.line() if grid.band else grid.plane()), "seed": problem.seed}
    if not grid.band:
        plan.check(arguments)
        plan.check_axes(arguments)
    problem.require_readable(checkpoints)
    with options.processes(problem.device) as (device, rank):
        problem = dataclasses.replace(problem, device=str(device))
        subjects = [problem.subject(path) for path in checkpoints]
        for subject in subjects:
            curved = grid.curvature or grid.directions == "hessian"
            options.show_plan(subject.problem, str(subject.path), 2 if curved else None)
        share(directory, shard)
        file = directory / "surface.h5"
        if grid.band:
            results = {"profiles": _profiles(subjects[0].problem, grid, arguments)}
        else:
            journal = {"file": file, "resume": resume or shard is not None, "shard": shard}
            if single:
                results = {"surface": _surface(subjects, grid, problem, {**arguments, **journal})}
            else:
                results = _side_by_side(subjects, grid.absolute, {**arguments, **journal})
    if rank:
        return
    if grid.band:
        hdf5.save(file, results)
    hashes = {str(s.path): s.sha256 for s in subjects}
    summary = {"checkpoints": hashes, "surfaces": {name: r.summary() for name, r in results.items()}}
    lines = [surface_text(name, r) for name, r in results.items()]
    if grid.persistence:
        found = minima_of(results, directory)
        summary["persistence"] = {name: p.summary() for name, p in found.items()}
        lines = [line for text, p in zip(lines, found.values(), strict=True) for line in (text, persistence_text(p))]
    write_json(directory / "surface.json", summary)
    drawing.write(results, directory / "figures")
    for ending in [name for name in ("gif", "mp4") if getattr(grid, name)]:
        from figures.drawing import animation
        from figures.page.analysis import labels

        animation.write(results["surface"], directory / "figures" / f"trajectory.{ending}", labels(checkpoints))
    output.show(summary, *lines, f"written to {directory}")


def _sizes(text: str, dimensions: int) -> int | tuple[int, ...]:
    from landscape.surfaces.grid.axes import check_points

    try:
        sizes = tuple(int(n) for n in text.split("x"))
    except ValueError as error:
        raise InputError(f"--grid {text!r}: a number, or one per axis as in 41x21, is needed") from error
    check_points(sizes * dimensions if len(sizes) == 1 else sizes)
    return sizes[0] if len(sizes) == 1 else sizes


def _range(text: str) -> tuple[float, float]:
    try:
        low, high = (float(v) for v in text.split(","))
    except ValueError as error:
        raise InputError(f"--range {text!r}: LOW,HIGH is needed, for example --range=-1,1") from error
    return low, high


def _profiles(problem: Problem, grid: GridOptions, arguments: dict[str, Any]) -> Any:
    import landscape

    return landscape.profiles(problem, draws=grid.draws, subsets=grid.subsets, **arguments)


def _side_by_side(subjects: list[Subject], absolute: bool, arguments: dict[str, Any]) -> dict[str, Any]:
    """A surface around each checkpoint, on one grid."""
    import landscape
    from figures.page.analysis import labels

    names = labels([s.path for s in subjects])
    problems = {name: s.problem for name, s in zip(names, subjects, strict=True)}
    return landscape.compare_surfaces(problems, absolute=absolute, **arguments)


def _surface(subjects: list[Subject], grid: GridOptions, problem: ProblemOptions, arguments: dict[str, Any]) -> Any:
    """One surface around one checkpoint, or through all of them."""
    import landscape
    from landscape.surfaces.comparison import check_same_architecture

    center = subjects[-1 if grid.directions == "trajectory" else 0]
    for subject in subjects:
        check_same_architecture(center.problem, subject.problem, str(subject.path))
    if grid.directions in THROUGH:
        arguments["checkpoints"] = [s.problem.weights for s in subjects if s is not center]
    if grid.directions == "optimizer":
        if problem.model:
            raise InputError("--directions optimizer needs a checkpoint that this toolkit's training wrote")
        arguments["optimizer"] = _optimizer(center)
    if grid.both_splits:
        arguments["others"] = problem.other_split(center.path, center.problem)
    return landscape.surface(center.problem, **arguments)


def _optimizer(subject: Subject) -> Any:
    """The state that the training's optimizer was left in."""
    from landscape import checkpoint
    from trainers.loop.base import in_model_order

    content = checkpoint.read(subject.path)
    state = content.get("optimizer")
    if not state:
        raise InputError(
            f"{subject.path} holds no optimizer state: train with this toolkit, or choose other directions"
        )
    return in_model_order(state, subject.model, content.get("settings", {}))
