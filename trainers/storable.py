"""What a checkpoint and a JSON file can hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def without_tuples(value: Any) -> Any:
    """The same tree with lists in place of tuples; tensors and numbers stay as they are."""
    if isinstance(value, Mapping):
        return {k: without_tuples(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [without_tuples(v) for v in value]
    return value
