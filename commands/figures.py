"""`landscape figures`: the papers' figures and tables again, each with a verdict on its claims."""

from __future__ import annotations

import os
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import click

from commands import options
from commands.claimed import share
from commands.ranges import Whole
from landscape.errors import InputError
from landscape.progress import is_shown
from trainers.references import resolve_device

if TYPE_CHECKING:
    from landscape.shards import Shard


@click.command("figures")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--all", "every", is_flag=True, help="Every figure.")
@click.option("--list", "listing", is_flag=True, help="Name the figures and what each shows.")
@click.option(
    "--preset",
    type=click.Choice(["quick", "middle", "gpu", "paper"]),
    default="quick",
    show_default=True,
    help="quick: small networks on a CPU, minutes; middle: real images on a CPU, an hour (matched-loss alone; "
    "others are as quick); gpu: ResNet-18 on Fashion-MNIST and CIFAR-10, a GPU and an hour or two (figures on images; "
    "others are as quick); paper: the papers' settings, needs a GPU and the data.",
)
@click.option("--seeds", type=Whole(1, 10_000), default=None, help="Seeds; default by figure and preset.")
@click.option("--workers", type=Whole(), default=None, help="Processes; default: the cores, on a GPU one.")
@options.always_resumes
@options.shard
@options.out("Directory of the figures and of what they were made from; default figures-out.")
@options.data_dir
@options.device
@options.venue
@options.quiet
def command(
    names: tuple[str, ...],
    every: bool,
    listing: bool,
    preset: str,
    seeds: int | None,
    workers: int | None,
    shard: Shard | None,
    out: str | None,
    data_dir: str | None,
    device: str | None,
) -> None:
    """Make the papers' figures and tables again: train, measure, draw, and judge each claim.

    Writes NAME.pdf, .svg, .png, .csv, .h5 and NAME-verdict.md, .json for every NAME, and verdicts.md; each as soon as
    its own runs are done. What an earlier call has run is reused; an interrupted one goes on. A figure that fails
    leaves the others alone, and the exit status is 1 (2 if all fail by wrong input). With --shard the trainings and
    measurements of all figures are shared, one at a time in each process.
    """
    from figures import FIGURES

    if listing:
        for entry in FIGURES.entries.values():
            click.echo(f"{entry.name:18} {entry.summary} ({entry.facts['source']})")
        return
    if every == bool(names):
        raise InputError("name the figures to make, or give --all; `landscape figures --list` names them")
    chosen = list(FIGURES) if every else list(names)
    for name in chosen:
        FIGURES.entry(name)
    if shard is not None and (workers or 1) > 1:
        raise InputError(
            f"--workers {workers} with --shard {shard}: a shard is one process, start more of them instead"
        )
    directory = Path(out or "figures-out")
    claims = share(directory, shard)
    from figures.study.figure import Unfinished, make
    from figures.study.study import Study

    where = "cpu" if preset not in ("gpu", "paper") and device is None else str(resolve_device(device))
    study = Study(
        directory / "study",
        preset,
        seeds=seeds,
        device=where,
        workers=workers or (1 if where.startswith("cuda") else _cores()),
        data_dir=data_dir,
        claims=claims,
    )
    for note in dict.fromkeys(FIGURES[name]().note(study) for name in chosen):
        if note and is_shown():
            click.echo(f"landscape: {note}", err=True)
    try:
        make(chosen, study, directory, click.echo)
    except Unfinished as unfinished:
        for name, error in unfinished.errors.items():
            lines = traceback.format_exception(error) if not isinstance(error, InputError) else [str(error)]
            click.echo(f"landscape: {name} was not made: {''.join(lines).rstrip()}", err=True)
        wrong_input = all(isinstance(e, InputError) for e in unfinished.errors.values())
        raise click.exceptions.Exit(2 if wrong_input and set(unfinished.errors) == set(chosen) else 1) from None
    finally:
        if (directory / "verdicts.md").exists():
            click.echo(directory / "verdicts.md")


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    return len(affinity(0)) if affinity else os.cpu_count() or 1
