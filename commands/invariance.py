"""`landscape invariance [CKPT]`: which measures see the network's function, and which its parametrization."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from commands import options
from commands.claimed import share
from commands.options import OutputOptions, ProblemOptions, option
from commands.ranges import POSITIVE, Real, Whole
from landscape.errors import InputError
from trainers.references import resolve_device

if TYPE_CHECKING:
    from landscape.invariance.measures import InvarianceOptions
    from landscape.problem.problem import Problem
    from landscape.shards import Shard


_OF_A_CHECKPOINT = (
    *("model", "model_arg", "data", "data_arg", "loss", "objective"),
    *("key", "allow_missing", "allow_extra", "rename", "adapter"),
)
"""Options of `ProblemOptions` that say nothing of the network that is made here."""


@dataclass(frozen=True)
class RescalingOptions:
    """Which rescalings, and which measures at each."""

    transforms: int = option("Rescaled networks.", type=Whole(2, 10**6), default=50)
    low: float = option("Smallest factor tau.", type=POSITIVE, default=0.5)
    high: float = option("Largest factor tau.", type=POSITIVE, default=1.5)
    rho: float | None = option("Radius of the plain 2-ball; default 0.05, without CKPT 0.5.", type=POSITIVE)
    rho_inf: float = option("Radius of the plain inf-ball.", type=POSITIVE, default=0.005)
    adaptive_rho: float = option("Radius of the adaptive 2-balls.", type=POSITIVE, default=0.5)
    adaptive_rho_inf: float = option("Radius of the adaptive inf-balls.", type=POSITIVE, default=0.05)
    orders: tuple[float, ...] = option(
        "2 or inf; repeatable; default both.", "-p", "--p", type=Real(1, infinite=True), multiple=True
    )
    steps: int = option("Steps of the worst-case ascents; 0 leaves them out.", type=Whole(0), default=20)
    eigenvalues: bool = option("lambda_max of H and T H T.", "--eigenvalues/--no-eigenvalues", default=True)
    hints: tuple[str, ...] = option(
        "For a model that cannot be traced: opaque (ends paths) or homogeneous; repeatable.",
        "--hint",
        multiple=True,
        metavar="MODULE=KIND",
    )

    def settings(self, untrained: bool) -> InvarianceOptions:
        """Radii and effort; the ASAM report's experiments on the untrained network take 0.5 for both methods."""
        from landscape.invariance.measures import InvarianceOptions

        if not self.low < self.high:
            raise InputError(f"--low {self.low} --high {self.high}: factors are drawn between them, give low < high")
        names = ("rho_inf", "adaptive_rho", "adaptive_rho_inf", "steps", "eigenvalues")
        shared: dict[str, Any] = {name: getattr(self, name) for name in names}
        if self.orders:
            shared["orders"] = self.orders
        return InvarianceOptions(rho=self.rho if self.rho is not None else 0.5 if untrained else 0.05, **shared)

    def kinds(self) -> dict[str, str]:
        """Module -> what it is said to be."""
        from landscape.invariance.rescaling.search import check_hints

        for hint in self.hints:
            if hint.count("=") != 1:
                raise InputError(f"--hint {hint!r}: MODULE=KIND is needed, for example --hint layers.3=opaque")
        kinds = dict(hint.split("=") for hint in self.hints)
        check_hints(kinds)
        return kinds


@click.command("invariance")
@click.argument("checkpoint", required=False, type=click.Path(path_type=Path), metavar="[CKPT]")
@options.group(RescalingOptions, "test")
@options.problem(
    dtype={"default": "float64"},  # a test of invariance to rounding needs digits
    samples={
        "help": "Examples of the fixed sample; default 256 (500 without CKPT): the symmetry holds for any.",
    },
)
@options.resume
@options.shard
@options.output("Default: invariance/, beside the checkpoint where there is one.")
def command(
    checkpoint: Path | None,
    test: RescalingOptions,
    problem: ProblemOptions,
    output: OutputOptions,
    resume: bool,
    shard: Shard | None,
) -> None:
    """Measure a network at random rescalings that leave its function as it is.

    Without a checkpoint: a randomly initialized network of five linear layers of width 10 and three ReLUs on points in
    the plane. With one: your network. Writes invariance.h5, invariance.json and figures/ to one directory. With --shard
    the rescaled networks are shared among jobs, which always go on with what is there.
    """
    from figures.drawing import invariance as drawing
    from figures.page.terminal import invariance_text
    from landscape.files import write_json
    from landscape.invariance.invariance import rescaling_invariance
    from landscape.results import hdf5
    from landscape.results.journal import Journal
    from landscape.results.result import plain

    settings, hints = test.settings(untrained=checkpoint is None), test.kinds()
    directory = output.directory((checkpoint.parent if checkpoint else Path()) / "invariance")
    loss, title, facts = _trained(checkpoint, problem) if checkpoint else _untrained(problem)
    options.show_plan(loss, title, 1)
    claims, resume = share(directory, shard), resume or shard is not None
    file, journal = directory / "invariance.h5", Journal(directory / "invariance.partial.jsonl", resume=resume)
    result = rescaling_invariance(
        loss,
        transforms=test.transforms,
        low=test.low,
        high=test.high,
        seed=problem.seed,
        settings=settings,
        hints=hints,
        journal=journal,
        claims=claims,
        stored=lambda: hdf5.load_group(file, "invariance") if resume and file.exists() else None,
    )
    summary = {**result.summary(), **facts, "provenance": plain(result.provenance)}

    def write() -> None:
        hdf5.save(file, {"invariance": result}, facts)
        write_json(directory / "invariance.json", summary)
        journal.finish()
        drawing.draw(result, directory / "figures", title=title)

    if claims is None:
        write()
    else:
        claims.once(f"result {result.identity}", write)
    output.show(summary, invariance_text(result, title), f"written to {directory}")


def _trained(checkpoint: Path, chosen: ProblemOptions) -> tuple[Problem, str, dict[str, Any]]:
    """The loss, the network's name, and what to write beside the result."""
    # The symmetry holds for any sample: a few examples show it.
    samples = 256 if chosen.samples is None else chosen.samples
    subject = dataclasses.replace(chosen, samples=samples).subject(checkpoint)
    return subject.problem, str(checkpoint), {"checkpoint": str(checkpoint), "sha256": subject.sha256}


def _untrained(chosen: ProblemOptions) -> tuple[Problem, str, dict[str, Any]]:
    """The toy network of the ASAM report (Table II), untrained, on points in the plane."""
    import torch

    from landscape.problem.problem import Problem
    from trainers.datasets import load_data
    from trainers.models import build_model

    for name in _OF_A_CHECKPOINT:
        if getattr(chosen, name):
            flag = name.replace("_", "-")
            raise InputError(f"--{flag} without a checkpoint: give the checkpoint that holds the weights")
    device, data = resolve_device(chosen.device), load_data("toy2d", seed=chosen.seed)
    model = build_model("table2-mlp", classes=2, input_shape=(2,), seed=chosen.seed)
    count = data.size(chosen.split)
    indices = torch.arange(min(chosen.samples or 500, count))
    problem = Problem(
        model.to(device, getattr(torch, chosen.dtype)),
        torch.nn.functional.cross_entropy,
        data.to(device).batches(chosen.split, chosen.batch_size or count, indices),
        parameters=list(chosen.parameters) or None,
        batch_norm=chosen.batch_norm,
    )
    return problem, "table2-mlp, untrained", {"checkpoint": None, "model": "table2-mlp", "data": "toy2d"}
