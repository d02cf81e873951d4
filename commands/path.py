"""`landscape path CKPT CKPT`: the loss between two networks, and the barrier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from commands import options
from commands.claimed import claim
from commands.minima import NOISE_DRAWS, minima_of
from commands.options import OutputOptions, ProblemOptions
from commands.ranges import POSITIVE, Whole
from landscape.errors import InputError


@click.command("path")
@click.argument("checkpoints", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="CKPT CKPT")
@click.option(
    "--curve",
    type=click.Choice(["linear", "bezier", "polygon"]),
    default="linear",
    show_default=True,
    help="A straight line, or a curve with a trained bend.",
)
@click.option("--align", "aligned", is_flag=True, help="Bring the second network into the first one's coordinates.")
@click.option("--points", type=Whole(3, 10**6), default=25, show_default=True, help="Points of the path.")
@click.option("--epochs", type=Whole(), default=10, show_default=True, help="Epochs that train the bend of a curve.")
@click.option("--lr", type=POSITIVE, default=0.05, show_default=True, help="Learning rate of the bend.")
@click.option(
    "--persistence", is_flag=True, help="Minima, saddles and what noise would give; one more forward pass per point."
)
@click.option("--both-splits", is_flag=True, help="Evaluate the other split at the same points.")
@options.problem(batch_norm={"default": "recalibrate"})
@options.output("Default: path/ beside the first checkpoint.")
def command(
    checkpoints: tuple[Path, ...],
    curve: str,
    aligned: bool,
    points: int,
    epochs: int,
    lr: float,
    persistence: bool,
    both_splits: bool,
    problem: ProblemOptions,
    output: OutputOptions,
) -> None:
    """Evaluate the loss on a line or a trained curve between two networks of one architecture.

    BatchNorm statistics are estimated again at every point unless --batch-norm says otherwise. Writes path.h5,
    path.json and figures/ to one directory.
    """
    import landscape
    from figures.drawing import loss_path as drawing
    from figures.page.terminal import path_text, persistence_text
    from landscape.files import write_json

    if len(checkpoints) != 2:
        raise InputError(f"{len(checkpoints)} checkpoint{'s' * (len(checkpoints) != 1)}: a path lies between two")
    first, second = checkpoints
    directory = output.directory(first.parent / "path")
    _require_alike(first, second, problem)
    start, end = (problem.subject(path) for path in (first, second))
    claim(directory)
    result = landscape.path(
        start.problem,
        end.problem,
        curve=curve,
        aligned=aligned,
        points=points,
        epochs=epochs,
        lr=lr,
        seed=problem.seed,
        noise_draws=NOISE_DRAWS if persistence else 0,
        others=problem.other_split(first, start.problem) if both_splits else {},
    )
    result.save(directory / "path.h5", "path")
    summary = {"checkpoints": {str(s.path): s.sha256 for s in (start, end)}, "path": result.summary()}
    lines = [path_text(result)]
    if persistence:
        minima = minima_of({"path": result}, directory)["path"]
        summary["persistence"] = minima.summary()
        lines.append(persistence_text(minima))
    write_json(directory / "path.json", summary)
    drawing.write(result, directory / "figures", (first, second))
    output.show(summary, *lines, f"written to {directory}")


def _require_alike(first: Path, second: Path, problem: ProblemOptions) -> None:
    """Refuse networks that no path joins before either is evaluated; of foreign checkpoints the model decides."""
    from landscape import checkpoint
    from landscape.surfaces.comparison import require_same_shapes

    problem.require_readable([first, second])
    if problem.model is None:
        mine, theirs = (_shapes(checkpoint.read(path)) for path in (first, second))
        require_same_shapes(mine, theirs, str(second))


def _shapes(content: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in content["model"]["state"].items()}
