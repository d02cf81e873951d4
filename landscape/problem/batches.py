"""A fixed set of batches: tensors, tuples or dicts as a loader gives them, kept on the device when they fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from landscape.errors import InputError
from landscape.problem.memory import free_memory
from landscape.results import digest

TARGET_KEYS = ("labels", "label", "targets", "target", "y")


@dataclass(frozen=True)
class Batch:
    """One batch: `model(*args, **kwargs)` is compared with `target`; `size` examples."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    target: Any
    size: int

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with the function applied to every tensor."""
        return Batch(
            tuple(_map(a, function) for a in self.args),
            {k: _map(v, function) for k, v in self.kwargs.items()},
            _map(self.target, function),
            self.size,
        )

    def tensors(self) -> list[Tensor]:
        """Every tensor of the batch, in a fixed order."""
        found: list[Tensor] = []
        self.map(lambda t: found.append(t) or t)  # type: ignore[func-returns-value]
        return found

    def rows(self, start: int, stop: int) -> Batch:
        """Examples start..stop-1 of the batch (every tensor is sliced along its first dimension)."""
        part = self.map(lambda t: t[start:stop] if t.dim() and t.shape[0] == self.size else t)
        return Batch(part.args, part.kwargs, part.target, min(stop, self.size) - start)


def as_batch(raw: Any, *, keep_target: bool = False) -> Batch:
    """Read one item of a user's loader.

    A tensor is its own target (reconstruction); a tuple or list is (inputs..., target); the inputs may be a tuple
    (positional arguments) or a dict (keyword arguments); a dict is keyword arguments, its target under "labels",
    "label", "targets", "target" or "y" (left among the arguments with `keep_target`, for models that return a loss).
    """
    args: tuple[Any, ...] = ()
    target: Any
    kwargs: dict[str, Any] = {}
    if isinstance(raw, Tensor):
        args, target = (raw,), raw
    elif isinstance(raw, Mapping):
        kwargs = dict(raw)
        key = next((k for k in TARGET_KEYS if k in kwargs), None)
        target = None if key is None else kwargs[key] if keep_target else kwargs.pop(key)
    elif isinstance(raw, list | tuple) and len(raw) >= 2:
        *inputs, target = raw
        inputs = list(inputs[0]) if len(inputs) == 1 and isinstance(inputs[0], list | tuple) else inputs
        if len(inputs) == 1 and isinstance(inputs[0], Mapping):
            kwargs = dict(inputs[0])
        else:
            args = tuple(inputs)
    else:
        raise InputError(
            f"a batch must be a tensor, a tuple (inputs, targets) or a dict, received {type(raw).__name__}"
        )
    sized = ([target] if isinstance(target, Tensor) else []) + Batch(args, kwargs, target, 0).tensors()
    size = next((t.shape[0] for t in sized if t.dim()), 0)
    if not size:
        raise InputError("a batch holds no example: its tensors need a first dimension of at least 1")
    return Batch(args, kwargs, target, size)


class Batches:
    """The batches of a Problem: iterating yields `Batch` on the device, floating point cast to the model's dtype.

    They are kept in memory when they fit in a quarter of what is free, else read again from the source at every pass.
    """

    _fingerprint = ""

    def __init__(
        self, source: Iterable[Any], device: torch.device, dtype: torch.dtype, *, keep_target: bool = False
    ) -> None:
        self._source, self._device, self._dtype, self._keep_target = source, device, dtype, keep_target
        one_shot = isinstance(source, Iterator)
        budget = float("inf") if one_shot else 0.25 * free_memory(device)
        kept: list[Batch] | None = []
        self.examples, used, self.sizes = 0, 0, []  # type: ignore[var-annotated]
        for batch in self._read():
            self.examples += batch.size
            self.sizes.append(batch.size)
            used += sum(t.numel() * t.element_size() for t in batch.tensors())
            kept = kept if kept is not None and used <= budget else None
            if kept is not None:
                kept.append(batch)
        if not self.examples:
            raise InputError("the batches hold no example: an iterable of (inputs, targets) is needed")
        self.kept = kept

    @classmethod
    def of(cls, batches: Sequence[Batch]) -> Batches:
        """A set made of batches that are on the device already."""
        new = cls.__new__(cls)
        new.kept, new.sizes, new.examples = list(batches), [b.size for b in batches], sum(b.size for b in batches)
        new._source, new._keep_target = (), False
        return new

    def _read(self) -> Iterator[Batch]:
        for raw in self._source:
            yield as_batch(raw, keep_target=self._keep_target).map(self._move)

    def _move(self, tensor: Tensor) -> Tensor:
        dtype = self._dtype if tensor.is_floating_point() else tensor.dtype
        return tensor.to(self._device, dtype, non_blocking=True)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.kept) if self.kept is not None else self._read()

    def __len__(self) -> int:
        return len(self.sizes)

    def reread_differs(self) -> bool:
        """Whether the source gives another first batch when it is read once more (a shuffling or augmenting loader)."""
        if isinstance(self._source, Iterator | list | tuple):
            return False
        first, again = next(iter(self)), next(self._read(), None)
        if again is None:
            return True
        pairs = zip(first.tensors(), again.tensors(), strict=False)
        return first.size != again.size or any(a.shape != b.shape or not torch.equal(a, b) for a, b in pairs)

    def whole(self) -> Batch | None:
        """All examples as one batch; None where they are not kept or their shapes differ."""
        if self.kept is None or len(self.kept) == 1:
            return None if self.kept is None else self.kept[0]
        lists = [b.tensors() for b in self.kept]
        first = lists[0]
        for batch, tensors in zip(self.kept, lists, strict=True):
            same = len(tensors) == len(first) and all(
                t.dim() and t.shape[0] == batch.size and t.shape[1:] == f.shape[1:]
                for t, f in zip(tensors, first, strict=True)
            )
            if not same:
                return None
        joined = iter([torch.cat(column) for column in zip(*lists, strict=True)])
        whole = self.kept[0].map(lambda _: next(joined))
        return Batch(whole.args, whole.kwargs, whole.target, self.examples)

    def split(self, size: int) -> list[Batch]:
        """The examples in order, in batches of `size` (the last may be shorter)."""
        whole = self.whole()
        if whole is None:
            raise InputError("these batches cannot be divided anew: they do not fit in memory or their shapes differ")
        return [whole.rows(i, min(i + size, whole.size)) for i in range(0, whole.size, size)]

    def fingerprint(self) -> str:
        """SHA-256 of all tensors in order: names the fixed sample in a result's provenance. Computed once if kept."""
        if self.kept is not None and self._fingerprint:
            return self._fingerprint
        self._fingerprint = digest.of_tensors(tensor for batch in self for tensor in batch.tensors())
        return self._fingerprint


def _map(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {k: _map(v, function) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_map(v, function) for v in value)
    return value
