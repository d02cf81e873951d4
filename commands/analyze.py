"""`landscape analyze CKPT...`: sharpness, curvature and a loss surface of one or several checkpoints, in one report."""

from __future__ import annotations

import dataclasses
import functools
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from commands import options
from commands.claimed import share
from commands.options import OutputOptions, ProblemOptions, option
from commands.ranges import POSITIVE, Whole
from landscape.errors import InputError
from trainers.references import resolve_data

if TYPE_CHECKING:
    from landscape.problem.problem import Problem
    from landscape.shards import Shard
    from trainers.rebuild import Subject
    from trainers.requests import MeasureRequest
    from trainers.run_checkpoints import RunCheckpoints


@dataclass(frozen=True)
class MeasureOptions:
    """What is measured."""

    measures: tuple[str, ...] = option(
        "Repeatable; default: SAM and adaptive sharpness, top eigenvalues. See `landscape list measures --options`.",
        "--measure",
        multiple=True,
        metavar="NAME[:KEY=VALUE,...]",
    )
    rho: tuple[float, ...] = option("Radius of the plain measures; repeatable: a curve.", multiple=True, type=POSITIVE)
    k: int | None = option("Number of eigenvalues.", "-k", type=Whole())
    subsets: int | None = option(
        "Disjoint subsets of the sample for the intervals of sharpness; default 8, 0 for samples under 256; 0: none.",
        type=Whole(0),
    )
    grid: int | None = option("Points per side of the surface; default 21; 0: no surface.", type=Whole(0))
    radius: float = option("Half-width of the surface in multiples of the weights' norm.", type=POSITIVE, default=0.07)

    other_data: str | None = option(
        "For relative_critical_sharpness: the data along whose update the loss is followed, named as in --data; "
        "default: the split that --split does not name.",
        metavar="NAME",
    )

    def __post_init__(self) -> None:
        if self.grid and (self.grid < 0 or self.grid % 2 == 0):
            raise InputError(f"--grid must be odd, so that the checkpoint is on the grid, or 0; received {self.grid}")
        if self.grid:
            from landscape.surfaces.grid.axes import check_points

            check_points((self.grid, self.grid))

    def beside(self, subject: Subject, problem: ProblemOptions) -> Subject:
        """The checkpoint with the loss over the other data, which is read where a measure takes it."""

        @functools.cache
        def other() -> Problem:
            if self.other_data is not None:
                return problem.over(subject.path, subject.problem, data=self.other_data)
            if callable(resolve_data(problem.data)):
                raise InputError(f"--data {problem.data} has no other split: name the other data with --other-data")
            return next(iter(problem.other_split(subject.path, subject.problem).values()))

        return dataclasses.replace(subject, companions=dataclasses.replace(subject.companions, other=other))

    def requests(self, seed: int, subsets: int) -> list[MeasureRequest]:
        """The measures, and the surface where one is wanted."""
        from figures.page.requests import DEFAULT_MEASURES, SURFACE, surface_request
        from trainers.requests import requests

        names = [m for m in self.measures if m != SURFACE] or list(DEFAULT_MEASURES)
        wanted = requests(names, self.rho, k=self.k, seed=seed, subsets=subsets)
        grid = 21 if self.grid is None else self.grid
        if grid and (not self.measures or SURFACE in self.measures or self.grid):
            wanted.append(surface_request(grid, self.radius, seed))
        return wanted


@click.command("analyze")
@click.argument("checkpoints", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="CKPT...")
@options.group(MeasureOptions, "measured")
@options.problem()
@options.always_resumes
@options.shard
@click.option("--every", type=Whole(), default=None, help="For a run: measure every Nth checkpoint, and the last.")
@options.output("Default: analysis/ beside the checkpoint, comparison/ for several, over-steps/ in a run.")
def command(
    checkpoints: tuple[Path, ...],
    measured: MeasureOptions,
    problem: ProblemOptions,
    output: OutputOptions,
    shard: Shard | None,
    every: int | None,
) -> None:
    """Measure the loss around checkpoints: sharpness, curvature with error bounds, a 2-D surface, a report.

    Writes analysis.h5, summary.json, report.html and figures/ to one directory. The checkpoints of a run (its folder,
    or files of one folder with their step or epoch in the name) give every measure over the steps: run.csv, run.h5,
    summary.json, report.html and figures/run. What an earlier call of the same checkpoint computed with the same
    settings is reused, also after an interruption. With --shard the measures of the checkpoints, of a run its
    checkpoints, are shared among jobs.
    """
    from trainers.run_checkpoints import run_of

    run = run_of(checkpoints)
    if run is not None:
        _analyze_run(run, every or 1, measured, problem, output, shard)
    elif every is None:
        _compare(checkpoints, measured, problem, output, shard)
    else:
        raise InputError(
            f"--every thins out the checkpoints of a run, and {', '.join(map(str, checkpoints))} is none: give a "
            "folder of checkpoints with their step or epoch in the name, or leave --every out"
        )


def _analyze_run(
    run: RunCheckpoints,
    every: int,
    measured: MeasureOptions,
    problem: ProblemOptions,
    output: OutputOptions,
    shard: Shard | None,
) -> None:
    """Every measure over the steps of a run."""
    from figures.drawing import run as drawing
    from figures.page import measuring, run_report
    from figures.page import run as running
    from figures.page.requests import SURFACE
    from landscape.files import write_json

    if measured.grid or SURFACE in measured.measures:
        raise InputError(
            "a surface of every checkpoint of a run is not drawn: landscape surface CKPT... --directions trajectory "
            "draws one of all, landscape analyze CKPT that of one"
        )
    stages, directory = run.thinned(every), output.directory(run.folder / "over-steps")
    requests = dataclasses.replace(measured, grid=0).requests
    requests(problem.seed, 0)

    def read(path: Path) -> Subject:
        return measured.beside(problem.subject(path), problem)

    first = read(stages[0].path)
    subsets = measuring.subsets_for([first.problem]) if measured.subsets is None else measured.subsets
    wanted = requests(problem.seed, subsets)
    options.show_plan(first.problem, f"{len(stages)} checkpoints", measuring.eigenpairs_needed(wanted))
    claims = share(directory, shard)
    rows = running.measure_run(first, stages, read, wanted, directory / "run.journal", claims)
    facts = {"provenance": first.problem.provenance(), "arguments": {"every": every}}
    keys, label = [request.key for request in wanted], f"{run.folder.resolve().name} over its steps"
    table = running.as_table(rows, run.unit, stages, keys, label=label, **facts)
    table.save(directory / "run.h5", "run")
    running.write_csv(table, run.unit, directory / "run.csv")
    write_json(directory / "summary.json", {"checkpoints": rows})
    drawing.write(table, rows, run.unit, directory / "figures")
    again = shlex.join(["landscape", *_without_shard(sys.argv[1:])])
    report = run_report.write(table, rows, run.unit, directory / "report.html", command=again, facts=first.metadata)
    said = [running.text(table, run.unit), *running.products(rows)]
    output.show({"checkpoints": rows}, *said, f"figure: {directory / 'figures' / 'run.pdf'}", f"report: {report}")


def _compare(
    checkpoints: tuple[Path, ...],
    measured: MeasureOptions,
    problem: ProblemOptions,
    output: OutputOptions,
    shard: Shard | None,
) -> None:
    """One checkpoint, or several side by side."""
    from figures.drawing import static
    from figures.page import analysis, differences, measuring, report, table
    from figures.page.store import Store
    from landscape.files import write_json

    directory = output.directory(checkpoints[0].parent / "analysis" if len(checkpoints) == 1 else Path("comparison"))
    # Measures are looked up before any checkpoint is read: a misspelled name costs nothing.
    measured.requests(problem.seed, 0)
    problem.require_readable(checkpoints)
    labelled = zip(analysis.labels(checkpoints), checkpoints, strict=True)
    pairs = [(label + kind, subject) for label, path in labelled for kind, subject in problem.subjects(path)]
    names, subjects = [name for name, _ in pairs], [measured.beside(subject, problem) for _, subject in pairs]
    subsets = measuring.subsets_for([s.problem for s in subjects]) if measured.subsets is None else measured.subsets
    requests = measured.requests(problem.seed, subsets)
    for name, subject in zip(names, subjects, strict=True):
        options.show_plan(subject.problem, name, measuring.eigenpairs_needed(requests))
    measured_at = [
        measuring.Measured(subject) for subject in subjects
    ]  # a loss of nan is reported before any is measured
    claims = share(directory, shard)
    file, owners = directory / "analysis.h5", {n: s.sha256 for n, s in zip(names, subjects, strict=True)}
    prefixes = [f"{name}/" if len(subjects) > 1 else "" for name in names]
    if claims is not None:
        measuring.share(dict(zip(prefixes, measured_at, strict=True)), Store(file, owners), requests, claims)
    store, analyses = Store(file, owners), []
    again = shlex.join(["landscape", *_without_shard(sys.argv[1:])])
    for at, name, prefix in zip(measured_at, names, prefixes, strict=True):
        analyses.append(measuring.analyze(at, name, store, requests, prefix=prefix, command=again))
    if claims is None:
        store.remove_parts()
    summary = analysis.summarize(analyses)
    write_json(directory / "summary.json", summary)
    static.write(analyses, directory / "figures")
    paired = differences.paired(analyses)
    report.write(analyses, directory / "report.html", command=again, differences=paired)
    if not output.as_json:
        table.show(analyses, differences=paired)
    output.show(summary, f"report: {directory / 'report.html'}")


def _without_shard(arguments: Sequence[str]) -> Iterator[str]:
    """The arguments of the command that makes the same alone."""
    left = iter(arguments)
    for argument in left:
        if argument == "--shard":
            next(left, None)
        elif not argument.startswith("--shard="):
            yield argument
