"""Errors and warnings that a user can act on."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from landscape.formatting import printable


class InputError(ValueError):
    """Wrong input: the message says what was received, what is needed and what to do. The command line exits with 2.

    It is one line: what is quoted from files in it is escaped, see `landscape.formatting.printable`.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class AsymmetryWarning(UserWarning):
    """Products that should be those of a symmetric matrix are not: a second derivative is wrong."""


class InputWarning(UserWarning):
    """Something about a file or an option that should be known before the numbers are believed.

    One line, as for `InputError`.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class CheckpointWarning(InputWarning):
    """Something in a checkpoint was not used, the model supplied what is missing, or the weights belong elsewhere."""


class NonDeterministicWarning(UserWarning):
    """Two evaluations of the same loss at the same weights differ; the message names the cause."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on whatever device: torch says so in several ways."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY)


_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "Storage size calculation overflowed")


def unknown(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name that does not exist, with the nearest ones that do."""
    known = sorted(known)
    near = difflib.get_close_matches(
        name.lower().replace("_", "-"), known, n=3, cutoff=0.5
    ) or difflib.get_close_matches(name.lower().replace("-", "_"), known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(repr(n) for n in near)}?" if near else f"known: {', '.join(known)}"
    return InputError(f"unknown {kind} {name!r}: {hint}")
