"""`landscape doctor [CKPT]`: what this machine is and whether it computes rightly; what an analysis would cost."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from commands import options
from commands.analyze import MeasureOptions
from commands.options import ProblemOptions
from landscape.errors import InputError

if TYPE_CHECKING:
    from figures.page.estimate import CostEstimate
    from trainers.rebuild import Subject


@click.command("doctor")
@click.argument("checkpoint", required=False, type=click.Path(path_type=Path), metavar="[CKPT]")
@options.group(MeasureOptions, "measured")
@options.problem()
@options.quiet
@click.pass_context
def command(context: click.Context, checkpoint: Path | None, measured: MeasureOptions, problem: ProblemOptions) -> None:
    """Say what is installed, and try second derivatives on this machine; for a checkpoint, what `analyze` would cost.

    Nothing is written. The status is 0 where all is well, and 1 where this machine computes wrongly or has too little
    memory.
    """
    from landscape import machine
    from trainers.data import data_directory
    from trainers.references import resolve_device

    _show(machine.versions().splitlines())
    _show(machine.extras())
    _show(machine.devices())
    _show([f"data: {data_directory(problem.data_dir)}"])
    starting = time.process_time()
    well = _tested(str(resolve_device(problem.device)))
    if checkpoint is not None:
        measured.requests(problem.seed, 0)  # a misspelled name costs no reading
        testing = time.process_time() - starting
        subject = measured.beside(problem.subject(checkpoint), problem)
        well = _cost(subject, measured, problem.seed, time.process_time() - testing) and well
    context.exit(0 if well else 1)


def _tested(device: str) -> bool:
    """Try the device; whether all was right."""
    import torch

    from landscape.self_test import self_test

    checks = self_test(torch.device(device))
    _show([f"self-test on {device}:", *(f"  {'ok' if c.ok else 'WRONG'}  {c.name}: {c.text}" for c in checks)])
    return all(c.ok for c in checks)


def _cost(subject: Subject, measured: MeasureOptions, seed: int, starting: float) -> bool:
    """What `landscape analyze` would compute, in how much memory and time; whether it fits.

    Args:
        subject: the checkpoint, brought back to life.
        measured: what is wanted.
        seed: of every draw.
        starting: seconds of computing until the checkpoint and its data are there.
    """
    from figures.page import measuring
    from figures.page.estimate import estimates
    from landscape import checkpoint
    from landscape.formatting import count

    problem = subject.problem
    subsets = measuring.subsets_for([problem]) if measured.subsets is None else measured.subsets
    wanted = measured.requests(seed, subsets)
    vectors = measuring.vectors_needed(wanted)
    _show([f"{subject.path}: {count(problem.examples)} examples, {count(problem.dimension)} parameters"])
    if checkpoint.lacks_checksum(subject.path):
        unknown = "  this kind of file has no checksum: compare its SHA-256 with what its publisher states: "
        _show([unknown + subject.sha256])
    plan = None
    if vectors is not None:
        try:
            plan = problem.plan(vectors=vectors)
            plan.require()
        except InputError as error:
            _show([f"  WRONG  {error}"])
            return False
        _show([f"  {plan}"])
    _show(_lines(estimates(problem, wanted, plan, subject.companions), starting))
    return True


def _lines(made: Iterable[CostEstimate], starting: float) -> Iterable[str]:
    """A line a measure as soon as it is known, then the sum."""
    from landscape.formatting import duration, number

    total = 0.0
    for one in made:
        passes = ", ".join(f"{number(n, 3)} {k}" for k, n in one.passes.items())
        cost = one.obstacle or f"{passes} passes, about {duration(one.seconds)}"
        total += 0.0 if one.obstacle else one.seconds
        yield f"  {one.key}: {cost}"
    yield f"  in all about {duration(total)}, after {duration(starting)} to start and to read"


def _show(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(line)
