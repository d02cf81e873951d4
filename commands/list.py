"""`landscape list methods|models|measures|figures`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from landscape.registry import Entry

KINDS = ("methods", "models", "measures", "figures")


@click.command("list")
@click.argument("kind", type=click.Choice(KINDS))
@click.option("--options", "with_options", is_flag=True, help="Show each entry's options, defaults and their source.")
def command(kind: str, with_options: bool) -> None:
    """Name what there is: methods, models, measures or figures, a line each."""
    for entry in _entries(kind):
        click.echo(f"{entry.name:28} {entry.summary}")
        for option in entry.options if with_options else ():
            click.echo(f"    {option.name}={option.default!r:12} {option.help}")


def _entries(kind: str) -> Iterable[Entry]:
    if kind == "models":
        from trainers.models import MODELS as registry
    elif kind == "methods":
        from trainers import METHODS as registry
    elif kind == "measures":
        from landscape import MEASURES as registry
    else:
        from figures import FIGURES as registry
    return registry.entries.values()
