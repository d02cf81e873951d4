"""`landscape analyze CKPT...`: sharpness, curvature and a loss surface of one or several checkpoints, in one report."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import click

from commands import options
from landscape.errors import InputError


@click.command("analyze")
@click.argument("checkpoints", nargs=-1, required=True, type=click.Path(), metavar="CKPT...")
@click.option(
    "--measure",
    "measures",
    multiple=True,
    metavar="NAME[:KEY=VALUE,...]",
    help="Repeatable; default: SAM and adaptive sharpness, top eigenvalues. See `landscape list measures --options`.",
)
@click.option("--rho", multiple=True, type=float, help="Radius of the plain measures; repeatable: a curve.")
@click.option("-k", type=int, default=None, help="Number of eigenvalues.")
@click.option(
    "--subsets",
    type=int,
    default=None,
    help="Disjoint subsets of the sample for the intervals of sharpness; default 8, 0 for samples under 256; 0: none.",
)
@click.option("--grid", type=int, default=None, help="Points a side of the surface; default 21; 0: no surface.")
@click.option(
    "--radius",
    type=float,
    default=0.07,
    show_default=True,
    help="Half-width of the surface in multiples of the weights' norm.",
)
@options.problem
@options.out("Default: analysis/ beside the checkpoint, comparison/ for several.")
@options.resume
@options.json
@options.quiet
def command(checkpoints: tuple[str, ...], **given: Any) -> None:
    """Measure the loss around checkpoints: sharpness, curvature with error bounds, a 2-D surface, a report.

    Writes analysis.h5, summary.json, report.html and figures/ to one directory. What an earlier call of the same
    checkpoint computed with the same settings is reused, also after an interruption.
    """
    from figures.drawing import static
    from figures.page import analysis, differences, report, table
    from landscape.results import digest

    paths = [Path(c) for c in checkpoints]
    out = (
        Path(given["out"]) if given["out"] else paths[0].parent / "analysis" if len(paths) == 1 else Path("comparison")
    )
    _check(given)
    names = analysis.labels(paths)
    # Measures are looked up before any checkpoint is read: a misspelled name costs nothing.
    _requests(given, 0)
    subjects = [options.build_subject(path, given) for path in paths]
    subsets = analysis.subsets_for([s.problem for s in subjects]) if given["subsets"] is None else given["subsets"]
    wanted = _requests(given, subsets)
    options.check_writable(out)
    store = analysis.Store(out / "analysis.h5", {n: digest.of_file(p) for n, p in zip(names, paths, strict=True)})
    again = shlex.join(["landscape", *sys.argv[1:]])
    analyses = []
    for subject, name in zip(subjects, names, strict=True):
        prefix = f"{name}/" if len(paths) > 1 else ""
        analyses.append(analysis.analyze(subject, name, store, wanted, prefix=prefix, command=again))
    analysis.write_summary(out / "summary.json", analyses)
    static.write(analyses, out / "figures")
    paired = differences.paired(analyses)
    report.write(analyses, out / "report.html", command=again, differences=paired)
    if given["as_json"]:
        click.echo(json.dumps(analysis.summarize(analyses), indent=1, allow_nan=False))
        return
    table.show(analyses, differences=paired)
    click.echo(f"report: {out / 'report.html'}")


def _check(given: dict[str, Any]) -> None:
    for name, value in (("--rho", given["rho"]), ("--radius", [given["radius"]])):
        if any(not v > 0 for v in value):
            raise InputError(f"{name} must be positive, received {', '.join(map(str, value))}")
    if given["k"] is not None and given["k"] < 1:
        raise InputError(f"-k must be at least 1, received {given['k']}")
    grid = given["grid"] or 1
    if grid < 0 or grid % 2 == 0:
        raise InputError(f"--grid must be odd, so that the checkpoint is on the grid, or 0; received {grid}")


def _requests(given: dict[str, Any], subsets: int) -> list[Any]:
    from figures.page import analysis

    texts = [m for m in given["measures"] if m != analysis.SURFACE] or list(analysis.DEFAULT_MEASURES)
    wanted = analysis.requests(texts, given["rho"], k=given["k"], seed=given["seed"], subsets=subsets)
    grid = given["grid"] if given["grid"] is not None else 21
    if grid and (not given["measures"] or analysis.SURFACE in given["measures"] or given["grid"]):
        wanted.append(analysis.surface_request(grid, given["radius"], given["seed"]))
    return wanted
