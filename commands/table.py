"""`landscape table DIR... --to FORMAT`: analyses as a table for a paper."""

from __future__ import annotations

from pathlib import Path

import click

from commands import options


@click.command("table")
@click.argument("directories", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="DIR...")
@click.option(
    "--to",
    required=True,
    type=click.Choice(["latex", "markdown", "csv"]),
    help="latex: a tabular with the rules of booktabs; csv: numbers in full.",
)
@click.option("--measure", "measures", multiple=True, metavar="KEY", help="Columns, in this order; default: all.")
@options.out("A file; default: the terminal.")
def command(directories: tuple[Path, ...], to: str, measures: tuple[str, ...], out: str | None) -> None:
    """Write what `landscape analyze` measured in DIR... as a table: a line for each checkpoint.

    Trainings that differ by their seed alone share a line, with their mean and its 95% interval over the seeds. A star
    marks a difference from the first line whose interval leaves out zero.
    """
    from figures.page.paper_table import FORMS, paper_table
    from figures.page.stored import analyses
    from landscape.files import atomic

    text = FORMS[to](paper_table(analyses(directories), measures))
    if out is None:
        click.echo(text, nl=False)
        return
    with atomic(Path(out)) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    click.echo(out)
