"""Options that several commands share, and how their texts become objects."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from landscape.errors import InputError
from landscape.progress import shown

if TYPE_CHECKING:
    import torch

F = TypeVar("F", bound=Callable[..., Any])

device = click.option("--device", default=None, help="cpu, cuda, cuda:1, ...; default: cuda where there is one.")
seed = click.option("--seed", default=0, show_default=True, help="Seed of every draw.")


def _show_progress(context: click.Context, parameter: click.Parameter, quiet: bool) -> None:
    if not context.resilient_parsing:
        context.with_resource(shown(not quiet))


quiet = click.option("--quiet", is_flag=True, expose_value=False, callback=_show_progress, help="No progress.")
json = click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON on stdout.")
data_dir = click.option(
    "--data-dir", type=click.Path(), default=None, help="Where data files lie; default $LANDSCAPE_DATA."
)
resume = click.option("--resume", is_flag=True, help="Go on with what is in the output directory.")


def out(help: str) -> Callable[[F], F]:
    """--out with a command's own default."""
    return click.option("--out", type=click.Path(), default=None, help=help)


def problem(command: F) -> F:
    """The options that say which function L(w) is analyzed: model, data, loss, samples, precision."""
    for option in reversed(
        [
            click.option(
                "--model",
                default=None,
                help="For a foreign checkpoint: module:callable that returns the nn.Module, or torchvision:NAME.",
            ),
            click.option(
                "--data", default=None, help="A built-in data set, npz:FILE, or module:callable that returns batches."
            ),
            click.option(
                "--loss", default=None, help="module:callable, called as loss(outputs, targets); default cross-entropy."
            ),
            click.option("--split", type=click.Choice(["train", "test"]), default="train", show_default=True),
            click.option(
                "--samples", type=int, default=None, help="Examples of the fixed sample; default 4096, or all."
            ),
            click.option("--batch-size", type=int, default=None, help="Default: by the kind of network."),
            click.option(
                "--batch-norm",
                type=click.Choice(["frozen", "batch", "recalibrate"]),
                default="frozen",
                show_default=True,
            ),
            click.option(
                "--parameters", multiple=True, metavar="GLOB", help="Only parameters whose names match; repeatable."
            ),
            click.option(
                "--dtype", type=click.Choice(["float32", "float64", "bfloat16"]), default="float32", show_default=True
            ),
            data_dir,
            device,
            seed,
        ]
    ):
        command = option(command)
    return command


def resolve_device(name: str | None) -> torch.device:
    """The device called `name`; without a name CUDA where there is one.

    Raises:
        InputError: no such device on this machine.
    """
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"unknown device {name!r}: cpu, cuda or cuda:N is needed") from error
    if chosen.type == "cuda" and (not torch.cuda.is_available() or (chosen.index or 0) >= torch.cuda.device_count()):
        raise InputError(
            f"device {name!r} was asked for, {torch.cuda.device_count()} CUDA devices are here: use --device cpu"
        )
    return chosen


def import_callable(text: str, option: str) -> Callable[..., Any]:
    """What `module:callable` names, imported with the current directory on the path.

    Raises:
        InputError: not of that form, no such module, no such callable.
    """
    module, separator, name = text.partition(":")
    if not separator or not module or not name:
        raise InputError(f"{option} {text!r}: module:callable is needed, for example my_models:build")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        raise InputError(f"{option} {text!r}: no module {error.name!r} in {os.getcwd()} or installed") from error
    if not callable(found):
        raise InputError(f"{option} {text!r}: {module} has no callable {name!r}")
    return found


def resolve_model(text: str | None) -> Callable[..., Any] | None:
    """What builds the network: a callable `module:callable`, or an architecture of torchvision, `torchvision:resnet50`.

    Raises:
        InputError: torchvision is not installed or has no such architecture; see `import_callable`.
    """
    if text is None or not text.startswith("torchvision:"):
        return None if text is None else import_callable(text, "--model")
    name = text.removeprefix("torchvision:")
    try:
        models = importlib.import_module("torchvision.models")
    except (ImportError, RuntimeError) as error:
        raise InputError(f"--model {text!r} needs a torchvision that fits the installed torch: {error}") from error
    if name not in models.list_models():
        from landscape.errors import unknown

        raise unknown("architecture of torchvision", name, models.list_models())
    return lambda: models.get_model(name, weights=None)


def resolve_data(text: str | None) -> str | Callable[..., Any] | None:
    """A built-in data set's name as it is (`npz:FILE`, `digits`), else the callable that `module:callable` names."""
    if text is None:
        return None
    from trainers.data import DATA
    from trainers.names import FILE_PREFIXES

    name = text.partition(":")[0]
    if text.startswith(FILE_PREFIXES) or name in DATA or ":" not in text:
        return text
    return import_callable(text, "--data")


def build_subject(path: Path, given: dict[str, Any]) -> Any:
    """The checkpoint brought back to life as the options of `problem` say; a `trainers.rebuild.Subject`."""
    import torch

    from trainers.rebuild import subject

    def build(name: str) -> Any:
        return import_callable(given[name], f"--{name}") if given[name] else None

    return subject(
        path,
        model=resolve_model(given["model"]),
        data=resolve_data(given["data"]),
        loss=build("loss"),
        dtype=getattr(torch, given["dtype"]),
        device=resolve_device(given["device"]),
        parameters=given["parameters"],
        **{k: given[k] for k in ("split", "samples", "batch_size", "batch_norm", "seed", "data_dir")},
    )


@contextlib.contextmanager
def processes(device: str | None) -> Iterator[tuple[torch.device, int]]:
    """Join the processes that torchrun started, if it did; yields this one's device and rank (0 where it is alone).

    On GPUs every process takes its own.
    """
    from landscape.processes import launched, process_group

    place = resolve_device(device)
    if place.type == "cuda" and launched():
        place = resolve_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
    with process_group(place) as rank:
        yield place, rank


def check_writable(directory: Path) -> None:
    """Fail before any work is done where results could not be written.

    Raises:
        InputError: the directory, or the nearest one above it that exists, is a file or not writable.
    """
    existing = directory
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise InputError(f"cannot write to {directory}: {existing} is a file; choose another --out")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"cannot write to {directory}: no permission in {existing}; choose another --out")
