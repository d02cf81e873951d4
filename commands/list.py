"""`landscape list methods|models|measures|figures`."""

from __future__ import annotations

import importlib

import click

REGISTRIES = {
    "methods": ("trainers", "METHODS"),
    "models": ("trainers.models", "MODELS"),
    "measures": ("landscape", "MEASURES"),
    "figures": ("figures", "FIGURES"),
}


@click.command("list")
@click.argument("kind", type=click.Choice(list(REGISTRIES)))
@click.option("--options", "with_options", is_flag=True, help="Show each entry's options, defaults and their source.")
def command(kind: str, with_options: bool) -> None:
    """Name what there is: methods, models, measures or figures, a line each."""
    module, name = REGISTRIES[kind]
    for entry in getattr(importlib.import_module(module), name).entries.values():
        click.echo(f"{entry.name:28} {entry.summary}")
        if with_options and "source" in entry.facts:
            click.echo(f"    defaults: {entry.facts['source']}")
        for option in entry.options if with_options else ():
            click.echo(f"    {option.name}={option.default!r:12} {option.help}")
