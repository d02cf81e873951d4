"""docs/reference/commands.md: every command with its arguments and options, as click knows them."""

from __future__ import annotations

import inspect

import click

from cli import program

HEAD = """# Commands

Made by `make docs` from the commands themselves. `landscape COMMAND --help` shows the same in a terminal. Results go to
stdout, progress and messages to stderr. Exit status: 0 done; 2 wrong input, said in one line; 1 an internal fault; 130
interrupted, what is finished kept.
"""
TRAIN = """Each method has a subcommand with its own options beside these: [methods](methods.md). `--out` is the
directory of the run, by default runs/METHOD.
"""


def page() -> str:
    """The page: a section per command, a subsection per subcommand; of `train METHOD` what all methods share."""
    context = click.Context(program, info_name="landscape")
    return "\n".join([HEAD, *(_sections(context, program, name) for name in program.list_commands(context))])


def _sections(parent: click.Context, group: click.Group, name: str, level: int = 2) -> str:
    command = group.get_command(parent, name)
    assert command is not None
    context = click.Context(command, info_name=name, parent=parent)
    parts = [
        f"{'#' * level} {context.command_path}\n",
        f"{_usage(context)}\n",
        f"{inspect.cleandoc(command.help or '')}\n",
    ]
    if name == "train" and isinstance(command, click.Group):
        parts += [TRAIN, _options(_train_options(context, command))]
    elif isinstance(command, click.Group):
        parts += [_sections(context, command, sub, level + 1) for sub in command.list_commands(context)]
    else:
        parts += [_options(command.params)]
    return "\n".join(parts)


def _train_options(context: click.Context, train: click.Group) -> list[click.Parameter]:
    """Options that every method has."""
    kinds = [train.get_command(context, name) for name in train.list_commands(context)]
    shared = set.intersection(*({p.name for p in kind.params} for kind in kinds if kind))
    plain = train.get_command(context, "sgd")
    assert plain is not None
    return [p for p in plain.params if p.name in shared - {"out"}]


def _usage(context: click.Context) -> str:
    words = " ".join(context.command.collect_usage_pieces(context))
    return f"```\n{context.command_path} {words}\n```"


def _options(parameters: list[click.Parameter]) -> str:
    rows = [_row(p) for p in parameters if isinstance(p, click.Option) and not p.hidden]
    return "\n".join(["| option | default | meaning |", "| --- | --- | --- |", *rows, ""]) if rows else ""


def _row(option: click.Option) -> str:
    flags = ", ".join(option.opts) + (f" / {option.secondary_opts[0]}" if option.secondary_opts else "")
    kind = "" if option.is_flag else f" {option.make_metavar(click.Context(click.Command('')))}"
    shown = isinstance(option.default, str | int | float) and not option.is_flag
    default = f"`{option.default}`" if shown else ""
    return f"| `{_cell(flags + kind)}` | {default} | {_cell(option.help or '')} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
