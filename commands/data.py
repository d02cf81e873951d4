"""`landscape data list` and `landscape data fetch NAME`."""

from __future__ import annotations

import click

from commands import options


@click.group("data")
def command() -> None:
    """List the built-in data sets, or fetch the official files of one."""


@command.command("list")
@click.option("--options", "with_options", is_flag=True, help="Show each data set's options and their defaults.")
def list_(with_options: bool) -> None:
    """Name every data set, a line each."""
    from trainers.data import DATA

    for entry in DATA.entries.values():
        click.echo(f"{entry.name:16} {entry.summary}")
        for option in entry.options if with_options else ():
            click.echo(f"    {option.name}={option.default!r:12} {option.help}")


@command.command("fetch")
@click.argument("name")
@options.data_dir
@options.quiet
def fetch_(name: str, data_dir: str | None) -> None:
    """Download the official files of a data set and check them against pinned checksums."""
    from trainers.data.files import fetch

    for path in fetch(name, data_dir):
        click.echo(path)
