"""The command line: finds the command, turns errors into one clear line and an exit status.

0 done; 2 wrong input; 1 an internal fault; 130 interrupted (what was finished is kept).
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType


def _interrupt(_signal: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, but end at once while a module is imported: imports turn it into errors of their own."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            _end_now()
        frame = frame.f_back
    raise KeyboardInterrupt


def _end_now() -> None:
    claimed = globals().get("_claimed")
    os.write(2, f"landscape: {claimed.interrupted() if claimed else 'interrupted'}\n".encode())
    _leave()


def _leave() -> None:
    """End with 130 and without the end of the interpreter, which takes most of a second once torch is imported."""
    if "multiprocessing.process" in sys.modules:
        for child in sys.modules["multiprocessing.process"].active_children():
            child.terminate()
        if "multiprocessing.util" in sys.modules:  # otherwise they are reported as leaked, after our line
            sys.modules["multiprocessing.util"]._run_finalizers(0)
    os._exit(130)


def _listen(answer=_interrupt) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as for a job in the background
            signal.signal(number, answer)


_program = __name__ == "__main__" or os.path.basename(sys.argv[0]) == "landscape"
if _program and "multiprocessing.spawn" not in sys.modules:  # a worker imports it too, and is its parent's to end
    _listen()  # before anything that takes time

import contextlib
import errno
import importlib
import warnings
from pathlib import Path

import click

import landscape
from commands.claimed import Claimed
from landscape.allocator import keep_freed_memory
from landscape.errors import InputError, is_out_of_memory, unknown

HELPERS = {"__init__", "claimed", "minima", "options", "ranges"}
ORDER = (
    "train",
    "analyze",
    "surface",
    "path",
    "invariance",
    "report",
    "table",
    "figures",
    "data",
    "export",
    "list",
    "doctor",
)
FILES = {p.stem for p in (Path(__file__).parent / "commands").glob("*.py")} - HELPERS
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
            raise unknown("command", args[0], COMMANDS)
        return super().resolve_command(ctx, args)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(landscape.__version__, prog_name="landscape")
def program() -> None:
    """Loss landscapes: train, measure sharpness and curvature, draw surfaces; every number with its error."""
    keep_freed_memory()


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit with its status."""
    _listen()
    warnings.formatwarning = _warning_line
    try:
        status = run(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:  # before the command began, or after it ended
        status = _fail("interrupted", 130)
    _listen(signal.SIG_IGN)  # everything is done and said: an interpreter that ends cannot answer
    if status == 130:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # closed, by us or at its other end
                stream.flush()
        _leave()
    sys.exit(status)


_SMALLER = {
    "train": "a smaller --batch-size or --model",
    "figures": "fewer --workers",
    "data": "another data set",
    "export": "another machine",
}
"""What to lower where memory ran out."""
_DISK = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ESTALE),
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EMFILE, errno.ENODEV),
}
"""What the disk, or a name on it, may be the cause of."""
_claimed = Claimed()


def run(arguments: list[str]) -> int:
    """Run a command; errors become a line on stderr and a status."""
    global _claimed
    _claimed = Claimed()
    try:
        _check_names(arguments)
        status = program.main(args=arguments, prog_name="landscape", standalone_mode=False, obj=_claimed)
    except InputError as error:
        return _fail(str(error), 2)
    except click.ClickException as error:
        return _fail(error.format_message(), 2)
    except (KeyboardInterrupt, click.Abort):
        return _fail(_claimed.interrupted(), 130)
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except OSError as error:
        if error.errno in _DISK:
            return _fail(f"{error.filename or 'output'}: {error.strerror}: free space or choose another --out", 2)
        raise
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            smaller = _SMALLER.get(arguments[0], "a smaller --batch-size, fewer --samples or fewer --parameters")
            return _fail(f"out of memory: use {smaller}", 2)
        raise
    # Outside of its standalone mode click returns the status of `Exit`.
    return status if isinstance(status, int) else 0


def _check_names(arguments: list[str]) -> None:
    for argument in arguments:
        if "\0" in argument:
            raise InputError(f"{argument!r}: no name or number has a NUL byte in it")


def _warning_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Our own warnings as one line of their text, all others with where they come from."""
    if category.__module__ == "landscape.errors":
        return f"landscape: {message}\n"
    return f"{filename}:{lineno}: {category.__name__}: {message}\n"


def _fail(message: str, status: int) -> int:
    click.echo(f"landscape: {message}", err=True)
    return status


if __name__ == "__main__":
    main()
