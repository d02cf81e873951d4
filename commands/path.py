"""`landscape path CKPT CKPT`: the loss between two networks, and the barrier."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from commands import options


@click.command("path")
@click.argument("first", type=click.Path(), metavar="CKPT")
@click.argument("second", type=click.Path(), metavar="CKPT")
@click.option("--curve", type=click.Choice(["linear", "bezier", "polygon"]), default="linear", show_default=True)
@click.option("--align", "aligned", is_flag=True, help="Reorder the second network's units to match the first's.")
@click.option("--points", type=int, default=25, show_default=True, help="Of the path.")
@click.option("--epochs", type=int, default=10, show_default=True, help="That train a curve's bend.")
@click.option("--lr", type=float, default=0.05, show_default=True, help="Of the bend.")
@click.option("--both-splits", is_flag=True, help="Evaluate the other split at the same points.")
@options.problem
@options.out("Default: path/ beside the first checkpoint.")
@options.json
@options.quiet
@click.pass_context
def command(context: click.Context, first: str, second: str, **given: Any) -> None:
    """Evaluate the loss on a line or a trained curve between two networks of one architecture.

    BatchNorm statistics are estimated anew at every point unless --batch-norm says otherwise. Writes path.h5, path.json
    and figures/ to one directory.
    """
    import landscape
    from figures.drawing import loss_path as drawing
    from landscape.files import write_json

    if context.get_parameter_source("batch_norm") != click.core.ParameterSource.COMMANDLINE:
        given["batch_norm"] = "recalibrate"
    out = Path(given["out"]) if given["out"] else Path(first).parent / "path"
    one, two = (options.build_subject(Path(p), given) for p in (first, second))
    options.check_writable(out)
    others = {}
    if given["both_splits"]:
        split = "test" if given["split"] == "train" else "train"
        other = options.build_subject(Path(first), {**given, "split": split}).problem
        others = {split: one.problem.with_batches(list(other.batches))}
    chosen = {k: given[k] for k in ("curve", "aligned", "points", "epochs", "lr", "seed")}
    result = landscape.path(one.problem, two.problem, others=others, **chosen)
    result.save(out / "path.h5", "path")
    hashes = {first: one.sha256, second: two.sha256}
    content = {"checkpoints": hashes, "path": result.summary()}
    write_json(out / "path.json", content)
    drawing.write(result, out / "figures", (Path(first), Path(second)))
    if given["as_json"]:
        click.echo(json.dumps(content, indent=1, allow_nan=False))
        return
    click.echo(drawing.described(result))
    click.echo(f"written to {out}")
