"""What a checkpoint and a JSON file can hold."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from landscape.errors import InputError


def without_tuples(value: Any) -> Any:
    """The same tree with lists in place of tuples; tensors and numbers stay as they are."""
    if isinstance(value, Mapping):
        return {k: without_tuples(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [without_tuples(v) for v in value]
    return value


def require_like(stored: Any, fresh: Any, name: str) -> None:
    """Raise InputError where a tree of a checkpoint is not built as the one that a fresh run begins with.

    Tensors need the same shape and dtype, lists the same length, mappings at least the same keys; what is None at first
    may have become anything.
    """
    if not _fits(stored, fresh):
        raise InputError(
            f"{name} of the checkpoint is {_described(stored)} where this run needs {_described(fresh)}: use "
            "another copy of it, or train again with another --out"
        )
    if isinstance(fresh, Mapping):
        for key, inner in fresh.items():
            require_like(stored[key], inner, f"{name}.{key}")
    elif isinstance(fresh, list | tuple):
        for i, inner in enumerate(fresh):
            require_like(stored[i], inner, f"{name}[{i}]")


def _fits(stored: Any, fresh: Any) -> bool:
    if isinstance(fresh, Tensor):
        return isinstance(stored, Tensor) and (stored.shape, stored.dtype) == (fresh.shape, fresh.dtype)
    if isinstance(fresh, Mapping):
        return isinstance(stored, Mapping) and fresh.keys() <= stored.keys()
    if isinstance(fresh, list | tuple):
        return isinstance(stored, list) and len(stored) == len(fresh)
    # Counts may have been averaged over m-groups.
    kinds = {int, float} if type(fresh) in (int, float) else {type(fresh)}
    return fresh is None or type(stored) in kinds


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of {str(value.dtype).removeprefix('torch.')} and shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"a mapping of {reprlib.repr(list(value))}"
    return f"a list of {len(value)}" if isinstance(value, list | tuple) else reprlib.repr(value)
