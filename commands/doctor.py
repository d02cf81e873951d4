"""`landscape doctor [CKPT]`: what this machine is and whether it computes rightly; what an analysis would cost."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from commands import options
from commands.analyze import MeasureOptions
from commands.options import ProblemOptions
from landscape.errors import InputError

if TYPE_CHECKING:
    from figures.page.analysis import Analysis
    from landscape.problem.memory import Plan
    from trainers.rebuild import Subject
    from trainers.requests import MeasureRequest


@click.command("doctor")
@click.argument("checkpoint", required=False, type=click.Path(path_type=Path), metavar="[CKPT]")
@options.group(MeasureOptions, "measured")
@options.problem()
@options.quiet
@click.pass_context
def command(context: click.Context, checkpoint: Path | None, measured: MeasureOptions, problem: ProblemOptions) -> None:
    """Say what is installed, and try second derivatives on this machine; for a checkpoint, what `analyze` would cost.

    Nothing is left on disk. The status is 0 where all is well, and 1 where this machine computes wrongly or has too
    little memory.
    """
    starting, start = time.process_time(), time.perf_counter()
    from landscape import machine
    from trainers.data import data_directory
    from trainers.references import resolve_device

    _show(machine.versions().splitlines())
    _show(machine.extras())
    _show(machine.devices())
    _show([f"data: {data_directory(problem.data_dir)}"])
    well = _tested(str(resolve_device(problem.device)))
    if checkpoint is not None:
        measured.requests(problem.seed, 0)  # a misspelled name costs no reading
        subjects = [(label, measured.beside(subject, problem)) for label, subject in problem.subjects(checkpoint)]
        reading = starting + time.perf_counter() - start
        well = _cost(subjects, measured, problem.seed, reading) and well
    context.exit(0 if well else 1)


def _tested(device: str) -> bool:
    """Try the device; whether all was right."""
    import torch

    from landscape.self_test import self_test

    checks = self_test(torch.device(device))
    _show([f"self-test on {device}:", *(f"  {'ok' if c.ok else 'WRONG'}  {c.name}: {c.text}" for c in checks)])
    return all(c.ok for c in checks)


def _cost(subjects: Sequence[tuple[str, Subject]], measured: MeasureOptions, seed: int, starting: float) -> bool:
    """What `landscape analyze` would compute, in how much memory and time; whether it fits.

    Args:
        subjects: the checkpoint, brought back to life, with what is said behind its path; of an adapter both kinds.
        measured: what is wanted.
        seed: of every draw.
        starting: seconds until the checkpoint and its data were there.
    """
    from figures.page import measuring
    from figures.page.estimate import memory
    from landscape.formatting import duration
    from landscape.problem.memory import peak_memory, size

    device = subjects[0][1].problem.weights.device
    held, seconds, most = peak_memory(device), 0.0, 0.0
    subsets = measuring.subsets_for([s.problem for _, s in subjects]) if measured.subsets is None else measured.subsets
    wanted = measured.requests(seed, subsets)
    eigenpairs = measuring.eigenpairs_needed(wanted)
    for label, subject in subjects:
        _show(_facts(subject, label))
        try:
            plan = None if eigenpairs is None else subject.problem.plan(eigenpairs=eigenpairs)
            if plan is not None:
                plan.require()
        except InputError as error:
            _show([f"  WRONG  {error}"])
            return False
        if plan is not None:
            _show([f"  {plan}"])
        seconds += _tried_out(subject, wanted, plan)
        most = max(most, memory(peak_memory(device), plan))
    if not math.isnan(most):
        _show([f"memory: about {size(most)} at the most, {size(held)} of it to start and to read"])
    _show([f"time: about {duration(starting + seconds)} in all, {duration(starting)} of it to start and to read"])
    return True


def _facts(subject: Subject, label: str) -> Iterator[str]:
    from landscape import checkpoint
    from landscape.formatting import count

    problem = subject.problem
    yield f"{subject.path}{label}: {count(problem.examples)} examples, {count(problem.dimension)} parameters"
    if checkpoint.lacks_checksum(subject.path):
        unknown = "  this kind of file has no checksum: compare its SHA-256 with what its publisher states: "
        yield unknown + subject.sha256


def _tried_out(subject: Subject, wanted: Sequence[MeasureRequest], plan: Plan | None) -> float:
    """Say a line per measure as soon as it is known; seconds of all."""
    from figures.drawing import static
    from figures.page import report
    from figures.page.estimate import estimates
    from landscape.formatting import duration, number

    def draw(analyses: Sequence[Analysis], folder: Path) -> None:
        static.write(analyses, folder / "figures")
        report.write(analyses, folder / "report.html")

    total = 0.0
    for one in estimates(subject, wanted, plan, draw):
        passes = [f"{', '.join(f'{number(n, 3)} {k}' for k, n in one.passes.items())} passes"] if one.passes else []
        _show([f"  {one.key}: {one.obstacle or ', '.join([*passes, f'about {duration(one.seconds)}'])}"])
        total += 0.0 if one.obstacle else one.seconds
    return total


def _show(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(line)
