"""Nested structures of tensors as loaders give them: read, mapped and sliced without knowing what they mean."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence


def mapped(value: Any, function: Callable[[Tensor], Tensor], other: Callable[[Any], Any] = lambda v: v) -> Any:
    """The structure with `function` applied to every tensor, `other` to every object that is not a plain structure.

    Mappings, tuples, named tuples, lists and dataclasses keep their types, as far as these can be copied.
    """
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, PackedSequence):
        return other(value)
    if isinstance(value, Mapping):
        items = {k: mapped(v, function, other) for k, v in value.items()}
        return items if type(value) is dict else _like(value, items)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(v, function, other) for v in value))
    if isinstance(value, list | tuple):
        parts = [mapped(v, function, other) for v in value]
        return parts if isinstance(value, list) else tuple(parts)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        new = copy.copy(value)
        for field in dataclasses.fields(value):
            object.__setattr__(new, field.name, mapped(getattr(value, field.name), function, other))
        return new
    return other(value)


def _like(value: Mapping[Any, Any], items: dict[Any, Any]) -> Any:
    """The items in a mapping of the same type (a `BatchEncoding`); a dict where it has no copies."""
    try:
        new: Any = copy.copy(value)
        for key, item in items.items():
            new[key] = item
    except (TypeError, AttributeError):
        return items
    return new


def tensors(value: Any) -> list[Tensor]:
    """Every tensor of the structure, in a fixed order; of an object with tensors inside (a graph) those it shows."""
    if isinstance(value, Tensor):
        return list(value.unbind()) if value.is_nested else [value]
    if isinstance(value, Mapping):
        return [t for v in value.values() for t in tensors(v)]
    if isinstance(value, list | tuple):
        return [t for v in value for t in tensors(v)]
    if opaque(value):
        facts = getattr(value, "to_dict", None)
        inside = facts() if callable(facts) else getattr(value, "__dict__", {})
        return [t for t in _values(inside) if isinstance(t, Tensor)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [t for f in dataclasses.fields(value) for t in tensors(getattr(value, f.name))]
    return []


def skeleton(value: Any) -> Any:
    """The structure without its tensors: keys in order, types, constants; equal where they can be joined in pairs."""
    if isinstance(value, Tensor):
        return ("tensor", value.dtype, tuple(value.shape[1:]))
    if isinstance(value, Mapping):
        return [(k, skeleton(v)) for k, v in value.items()]
    if isinstance(value, list | tuple):
        return [type(value), *(skeleton(v) for v in value)]
    return value


def opaque(value: Any) -> bool:
    """Whether the value is an object that moves to a device by itself (`.to`) and is passed on as it is."""
    plain = isinstance(value, Tensor | Mapping | list) or (isinstance(value, tuple) and not hasattr(value, "to"))
    return not plain and not isinstance(value, type) and callable(getattr(value, "to", None))


def sliceable(value: Any, size: int) -> bool:
    """Whether every part of the structure is a tensor whose first dimension runs over the `size` examples.

    Constants may stand among named or positional parts; a list of them may belong to the examples, and does not pass.
    """
    if isinstance(value, Tensor):
        return value.dim() > 0 and not value.is_nested and value.layout == torch.strided and value.shape[0] == size
    if isinstance(value, Mapping):
        return all(_constant(v) or sliceable(v, size) for v in value.values())
    if isinstance(value, tuple) and not opaque(value):
        return all(_constant(v) or sliceable(v, size) for v in value)
    return isinstance(value, list) and bool(value) and all(sliceable(v, size) for v in value)


def _constant(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def moved(value: Any, device: torch.device, dtype: torch.dtype | None) -> Any:
    """The structure on a device, floating-point tensors in `dtype` (None: as they are).

    An object of another kind moves by its own `.to`; a packed sequence is cast too.
    """

    def move(tensor: Tensor) -> Tensor:
        cast = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        return tensor.to(device, cast, non_blocking=True)

    def move_other(other: Any) -> Any:
        if isinstance(other, np.ndarray) and other.dtype.kind in "biuf":
            return move(torch.from_numpy(other))
        if isinstance(other, PackedSequence):
            return other.to(device) if dtype is None else other.to(device, dtype)  # type: ignore[call-overload,arg-type]
        return other.to(device) if opaque(other) else other

    return mapped(value, move, move_other)


def _values(inside: Any) -> Iterator[Any]:
    for value in inside.values() if isinstance(inside, Mapping) else ():
        yield from _values(value) if isinstance(value, Mapping) else [value]
