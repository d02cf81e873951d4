"""The command line: finds the command, turns errors into one clear line and an exit status.

0 done; 2 wrong input; 1 an internal fault; 130 interrupted (what was finished is kept).
"""

from __future__ import annotations

import errno
import importlib
import signal
import sys
from pathlib import Path

import click

import landscape

ORDER = ("train", "analyze", "surface", "path", "invariance", "figures", "data", "export", "list")
FILES = {p.stem for p in (Path(__file__).parent / "commands").glob("*.py")} - {"__init__", "options"}
# As a user meets them; a new file in commands/ is a command without being listed here.
COMMANDS = [*(name for name in ORDER if name in FILES), *sorted(FILES - set(ORDER))]


class Commands(click.Group):
    """One command per file in commands/, imported when it is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order in which a user meets them."""
        return COMMANDS

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command called `cmd_name`, else None."""
        if cmd_name not in COMMANDS:
            return None
        return importlib.import_module(f"commands.{cmd_name}").command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, but an unknown command names the nearest ones."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from landscape.errors import unknown

            raise unknown("command", args[0], COMMANDS)
        return super().resolve_command(ctx, args)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(landscape.__version__, prog_name="landscape")
def program() -> None:
    """Loss landscapes: train, measure sharpness and curvature, draw surfaces; every number with its error."""


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit with its status."""
    signal.signal(signal.SIGTERM, _interrupt)
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Run a command; errors become a line on stderr and a status."""
    from landscape.errors import InputError

    try:
        status = program.main(args=arguments, prog_name="landscape", standalone_mode=False)
    except InputError as error:
        return _fail(str(error), 2)
    except click.ClickException as error:
        return _fail(error.format_message(), 2)
    except (KeyboardInterrupt, click.Abort):
        return _fail(
            "interrupted: what was finished is kept; the same command goes on, with --resume if it has it", 130
        )
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS):
            return _fail(f"{error.filename or 'output'}: {error.strerror}: free space or choose another --out", 2)
        raise
    except (MemoryError, RuntimeError) as error:
        if "out of memory" in str(error) or isinstance(error, MemoryError):
            return _fail("out of memory: use a smaller --batch-size or fewer --samples", 2)
        raise
    # Outside of its standalone mode click returns the status of `Exit`.
    return status if isinstance(status, int) else 0


def _fail(message: str, status: int) -> int:
    click.echo(f"landscape: {message}", err=True)
    return status


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
