"""`landscape export FILE.h5 --to FORMAT`: results for other tools."""

from __future__ import annotations

from pathlib import Path

import click

from commands import options
from commands.claimed import check_writable


@click.command("export")
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE.h5")
@click.option(
    "--to",
    required=True,
    type=click.Choice(["csv", "npz", "vtk", "stl", "gltf", "json"]),
    help="csv: tables; npz: arrays; json: web viewers. Surfaces also as vtk: ParaView; stl: printers; gltf: slides.",
)
@options.out("Default: the file's directory.")
def command(file: Path, to: str, out: str | None) -> None:
    """Write the results of an HDF5 file in another format; prints the files written."""
    from landscape.results.export import export

    check_writable(Path(out) if out else file.parent)
    for path in export(file, to, out):
        click.echo(path)
