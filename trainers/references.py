"""What the texts of the command line, and of `problem_from`, refer to: callables, networks, data sets, losses, devices.

These come from the person at the keyboard: a file's text never gets here.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from landscape.errors import InputError, unknown

if TYPE_CHECKING:
    import torch

    from trainers.architectures import BuiltIn
    from trainers.hugging_face.examples import HubExamples

LOSSES = ("own", "cross-entropy", "mse", "bce", "nll")
"""Those of `landscape.problem.losses.NAMED`, which needs torch."""


def resolve_device(name: str | None) -> torch.device:
    """The device called `name`; without a name CUDA where there is one.

    Raises:
        InputError: no such device on this machine.
    """
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"unknown device {name!r}: cpu, cuda or cuda:N is needed") from error
    if device.type not in ("cpu", "cuda"):
        try:
            torch.zeros(1, device=device).item()
        except (RuntimeError, NotImplementedError, AssertionError) as error:
            raise InputError(
                f"device {name!r} was asked for, this machine or torch has none: use --device cpu"
            ) from error
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise InputError(
            f"device {name!r} was asked for, {torch.cuda.device_count()} CUDA devices are here: use --device cpu"
        )
    return device


def import_callable(text: str, flag: str) -> Callable[..., Any]:
    """What `module:callable` names, imported with the current directory on the path.

    Raises:
        InputError: not of that form, no such module, no such callable.
    """
    module, separator, name = text.partition(":")
    if not separator or not module or not name:
        raise InputError(f"{flag} {text!r}: module:callable is needed, for example my_models:build")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        with _named(f"{flag} {text!r}", ModuleNotFoundError):
            value = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        raise InputError(f"{flag} {text!r}: no module {error.name!r} in {os.getcwd()} or installed") from error
    if not callable(value):
        raise InputError(f"{flag} {text!r}: {module} has no callable {name!r}")
    return value


def resolve_loss(text: str | Callable[..., Any] | None) -> str | Callable[..., Any] | None:
    """The name of a loss, or what `module:callable` names.

    Raises:
        InputError: no such loss; see `import_callable`.
    """
    if not isinstance(text, str) or text in LOSSES:
        return text
    if ":" not in text:
        raise unknown("loss", text, [*LOSSES, "module:callable"])
    return import_callable(text, "--loss")


def resolve_model(
    model: str | Callable[..., Any] | None, arguments: Mapping[str, Any] | None = None
) -> Callable[..., Any] | BuiltIn | None:
    """What builds the network: of the user's `module:callable`, or of a name, see `trainers.architectures`.

    Raises:
        InputError: no such network, a callable that does not take the arguments; see `import_callable`.
    """
    from trainers.architectures import is_named, named_network

    arguments = arguments or {}
    if isinstance(model, str) and is_named(model):
        return named_network(model, arguments)
    build = import_callable(model, "--model") if isinstance(model, str) else model
    if build is None:
        if arguments:
            raise InputError("--model-arg is for the network that --model names: give --model too")
        return None
    return _with_arguments(build, f"--model {model!r}", arguments)


def resolve_data(
    text: str | Callable[..., Any] | None, arguments: Mapping[str, Any] | None = None
) -> str | HubExamples | Callable[..., Any] | None:
    """A data set's name as it is (`npz:FILE`, `digits`), else examples of Hugging Face or a callable, with arguments.

    Raises:
        InputError: a callable, or examples of Hugging Face, that do not take the arguments; see `import_callable`.
    """
    if not isinstance(text, str):
        return text
    from trainers.data import DATA
    from trainers.hugging_face.examples import PREFIXES, HubExamples
    from trainers.names import FILE_PREFIXES

    if text.startswith(PREFIXES):
        return HubExamples.named(text, arguments or {})
    name = text.partition(":")[0]
    if text.startswith(FILE_PREFIXES) or name in DATA or ":" not in text:
        return text
    return _with_arguments(import_callable(text, "--data"), f"--data {text!r}", arguments or {})


def _with_arguments(build: Callable[..., Any], what: str, arguments: Mapping[str, Any]) -> Callable[..., Any]:
    if arguments:
        try:
            inspect.signature(build).bind(**arguments)
        except TypeError as error:
            raise InputError(f"{what} cannot be called with {dict(arguments)}: {error}") from error

    @functools.wraps(build)
    def called(*args: Any, **kwargs: Any) -> Any:
        with _named(what):
            return build(*args, **{**arguments, **kwargs})

    return called


@contextlib.contextmanager
def _named(what: str, *passed: type[Exception]) -> Iterator[None]:
    """Tell an exception of the user's code in one line, with the place in it; those `passed` go through."""
    try:
        yield
    except Exception as error:
        if isinstance(error, (InputError, *passed)):
            raise
        frames = traceback.extract_tb(error.__traceback__)
        own = (f for f in reversed(frames) if "site-packages" not in f.filename and not f.filename.startswith("<"))
        place = next(own, frames[-1])
        first = (str(error).splitlines() or [""])[0]
        raise InputError(
            f"{what} raised {type(error).__name__}: {first} (line {place.lineno} of {place.filename})"
        ) from error
