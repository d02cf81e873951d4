"""The libraries of Hugging Face: imported on use, without the network, their errors in one line."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from types import ModuleType

from landscape.errors import InputError


def library(name: str, what: str) -> ModuleType:
    """The module `name`.

    Args:
        name: of the library.
        what: needs it: an option with its value.

    Raises:
        InputError: it is not installed; says how it is.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"{what} needs {name}: pip install 'loss-landscape-toolkit[hf]'") from error


@contextlib.contextmanager
def local(problem: str) -> Iterator[None]:
    """The hub's client refuses to connect within; whatever a library raises on a file becomes one line.

    Args:
        problem: what it means that something was raised.

    Raises:
        InputError: anything but an InputError was raised within.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # whatever libraries of that size raise on what they did not write
        raise InputError(f"{problem}: {' '.join(str(error).split())[:300]}") from error
    finally:
        constants.HF_HUB_OFFLINE = before
