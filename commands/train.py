"""`landscape train METHOD`: train a network with one method; its options are read from its file, without torch."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from commands import options
from commands.claimed import announce
from commands.ranges import Real, Whole
from landscape.errors import InputError
from landscape.registry import Entry, Option, argument_help
from trainers import METHODS
from trainers.loop.settings import AVERAGES, BASES, ENDS, PRECISIONS, SCHEDULES, Settings

if TYPE_CHECKING:
    from trainers.loop.loop import Run

_CHOICES = {"base": BASES, "schedule": SCHEDULES, "precision": PRECISIONS, "average": AVERAGES}
_METAVARS = {"save_every": "EPOCHS", "keep_every": "EPOCHS", "data_dir": "DIR", "data": "NAME", "model": "NAME"}
_TYPES = {"int": Whole(-(2**63), 2**63 - 1), "float": Real(), "str": click.STRING, "bool": click.BOOL}

monitored = click.option(
    "--monitor",
    multiple=True,
    metavar="NAME[:KEY=VALUE,...]",
    help="A measure that is taken during the training, in a twentieth of its time, into monitor.csv and monitor.h5; "
    "repeatable. As `landscape analyze --measure`, or lambda_max, sharpness, trace.",
)


class Methods(click.Group):
    """One sub-command a method, made when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the registered methods."""
        return list(METHODS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a method; an unknown name raises InputError with the nearest ones."""
        return method_command(METHODS.entry(cmd_name))


class MethodCommand(click.Command):
    """A method's sub-command: an option that only other methods have is reported as theirs."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does it."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            name = error.option_name.lstrip("-").replace("-", "_")
            having = [e.name for e in METHODS.entries.values() if name in {o.name for o in e.options}]
            if not having:
                raise
            options_of_it = [f"--{o.name.replace('_', '-')}" for o in METHODS.entry(str(self.name)).options]
            its = f"its own are {', '.join(options_of_it)}" if options_of_it else "it has none of its own"
            raise InputError(
                f"{self.name} has no {error.option_name}: that is an option of {', '.join(having)}; {its}"
            ) from error


@click.group("train", cls=Methods, subcommand_metavar="METHOD [OPTIONS]")
def command() -> None:
    """Train a network with METHOD and write ckpt.pt, history.csv and config.json to a directory."""


def method_command(entry: Entry) -> click.Command:
    """`landscape train NAME`: the method's own options, then the settings that all methods share."""
    names = {o.name for o in entry.options}
    helps = argument_help(inspect.cleandoc(Settings.__doc__ or ""))
    fields = [f for f in dataclasses.fields(Settings) if f.name not in names]
    settings = [Option(f.name, str(f.type), f.default, helps[f.name]) for f in fields]

    def run(out: str | None, device: str | None, resume: bool, monitor: tuple[str, ...], **values: Any) -> None:
        directory = Path(out or f"runs/{entry.name}")
        if resume:
            values = _completed(directory, values)
        arguments = {name: values.pop(name) for name in names}
        settings = Settings(**values)
        _train(entry.name, arguments, settings, directory, device=device, resume=resume, monitor=monitor)

    parameters = [_option(o) for o in (*entry.options, *settings)]
    made = MethodCommand(entry.name, callback=run, params=[*parameters], help=_help(entry), short_help=entry.summary)
    for decorate in (
        options.quiet,
        options.resume,
        options.device,
        monitored,
        options.out(f"Directory of the run; default runs/{entry.name}."),
    ):
        decorate(made)
    return made


def _option(option: Option) -> click.Option:
    name, kind = option.name, option.type.removesuffix(" | None")
    flag = f"--{name.replace('_', '-')}"
    text = option.help[:1].upper() + option.help[1:]
    if kind == "bool":
        return click.Option([f"{flag}/--no-{name.replace('_', '-')}"], default=option.default, help=text)
    return click.Option(
        [flag, name],
        type=click.Choice(_CHOICES[name]) if name in _CHOICES else _TYPES[kind],
        default=option.default,
        metavar=_METAVARS.get(name),
        show_default=option.default is not None,
        help=text,
    )


def _help(entry: Entry) -> str:
    facts = [f"{label}: {entry.facts[key]}." for key, label in _FACTS.items() if key in entry.facts]
    prose = entry.doc.split("\nArgs:")[0].strip()
    return "\n\n".join([prose, *facts])


_FACTS = {"source": "Defaults", "cost": "Passes per step", "statistics": "BatchNorm statistics move in"}


def _train(
    name: str,
    arguments: dict[str, Any],
    settings: Settings,
    out: Path,
    *,
    device: str | None,
    resume: bool,
    monitor: tuple[str, ...],
) -> None:
    announce(out)
    from trainers import train

    with options.processes(device) as (here, rank):
        method = METHODS[name](**arguments)
        run = train(method, out=out, resume=resume, device=here, monitor=monitor, **vars(settings))
    if rank == 0:
        _report(run)


def _completed(directory: Path, values: dict[str, Any]) -> dict[str, Any]:
    """On resuming, what is not said on the command line is what the run was started with."""
    if not (directory / "config.json").exists():
        return values
    from trainers.loop.run_directory import read_config

    config = read_config(directory)
    kept = {**config["settings"], **config["method"]["arguments"]}
    source = click.get_current_context().get_parameter_source
    said = {name for name in values if source(name) is not click.core.ParameterSource.DEFAULT}
    if said.intersection(ENDS):  # another end than the run's is reported as that, not as two ends at once
        said.update(ENDS)
    return {name: value if name in said else kept.get(name, value) for name, value in values.items()}


def _report(run: Run) -> None:
    row, path = run.history[-1], f"{run.directory}/ckpt.pt"
    if not run.epochs_trained:
        click.echo(f"{run.directory} is finished ({row['epoch']} epochs): nothing is left to do", err=True)
    click.echo(
        f"{path}: test accuracy {row['test_accuracy']:.4f}, test loss {row['test_loss']:.4f} "
        f"after {row['epoch']} epochs ({run.passes:.2f} passes, {row['seconds']:.1f} s)"
    )
    if run.averaged is not None:
        mean, path = run.averaged, f"{run.directory}/average/ckpt.pt"
        click.echo(
            f"{path}: test accuracy {mean.test_accuracy:.4f}, test loss {mean.test_loss:.4f} with averaged weights "
            f"({run.settings.average})"
        )
