"""`landscape report DIR...`: one page over many analyses."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click

from commands import options


@click.command("report")
@click.argument("directories", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="DIR...")
@options.out("The page; default: report.html.")
def command(directories: tuple[Path, ...], out: str | None) -> None:
    """Join what `landscape analyze` wrote to DIR..., or anywhere below, into one page that works offline.

    A table to sort, any measure against any other with rank correlations, and the surfaces side by side. Ratios are to
    the first checkpoint.
    """
    from figures.page import joined_report
    from figures.page.stored import analyses

    again = shlex.join(["landscape", *sys.argv[1:]])
    click.echo(f"report: {joined_report.write(analyses(directories), Path(out or 'report.html'), command=again)}")
