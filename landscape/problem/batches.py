"""A fixed set of batches: as a loader gives them, read once, weighed, kept on the device when they fit."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import DataLoader, Dataset, IterableDataset

from landscape.errors import InputError
from landscape.problem import structure
from landscape.problem.memory import free_memory
from landscape.results import digest

TARGET_KEYS = ("labels", "label", "targets", "target", "y")
DATASET_BATCH = 256


@dataclass(frozen=True)
class Batch:
    """One batch: `model(*args, **kwargs)` is compared with `target`.

    Attributes:
        args: positional arguments of the model.
        kwargs: keyword arguments of the model.
        target: what the loss compares the outputs with.
        size: number of examples.
        weight: c_b, the batch's weight in L(w) = sum_b c_b l_b(w) / sum_b c_b.
        number: position among the user's batches; None for what was regrouped.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    target: Any
    size: int
    weight: float = math.nan
    number: int | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with the function applied to every tensor."""
        args, kwargs, target = structure.mapped((self.args, self.kwargs, self.target), function)
        return replace(self, args=args, kwargs=kwargs, target=target)

    def tensors(self) -> list[Tensor]:
        """Every tensor of the batch, in a fixed order."""
        return structure.tensors((self.args, self.kwargs, self.target))

    @property
    def sliceable(self) -> bool:
        """Whether every tensor's first dimension runs over the examples, and there is nothing but tensors."""
        return bool(self.tensors()) and structure.sliceable((self.args, self.kwargs, self.target), self.size)

    def rows(self, start: int, stop: int) -> Batch:
        """Examples start..stop-1 of the batch (every tensor is sliced along its first dimension)."""
        part = self.map(lambda t: t[start:stop] if t.dim() and t.shape[0] == self.size else t)
        return replace(part, size=min(stop, self.size) - start, weight=math.nan, number=None)

    def select(self, index: Tensor) -> Batch:
        """The examples of these positions, in their order."""
        part = self.map(lambda t: t[index] if t.dim() and t.shape[0] == self.size else t)
        return replace(part, size=len(index), weight=math.nan, number=None)

    def __str__(self) -> str:
        shapes = ", ".join(str(tuple(t.shape)) for t in self.tensors()[:4])
        which = f"batch {self.number}" if self.number is not None else "a batch"
        return f"{which} ({self.size} example{'s' * (self.size != 1)}, tensors {shapes or 'none'})"


@dataclass(frozen=True)
class Reader:
    """How an item of a loader is understood, by the model's signature and by what the objective needs.

    Attributes:
        forward: the model's forward, which decides whether dicts and lists are one argument or several.
        keep_target: leave the target among the arguments, for models that return their loss.
        whole: the objective takes the item itself.
    """

    forward: Callable[..., Any] | None = None
    keep_target: bool = False
    whole: bool = False

    def __call__(self, item: Any) -> Batch:
        """Read one item.

        A tensor is its own target (reconstruction); a tuple or list is (inputs..., target), inputs a tuple (positional
        arguments) or a dict (keyword arguments, or the one argument of a forward(batch)); a dict is the same with its
        target under "labels", "label", "targets", "target" or "y"; a named tuple with such a field has it there; any
        other object with `.to` (a graph, a packed sequence) is the model's one argument, its target an attribute of
        one of these names or the object itself.
        """
        if self.whole:
            return Batch((item,), {}, None, _size(None, item) or 1)
        args, kwargs, target = self._parts(item)
        if isinstance(target, Tensor) and target.dim() == 0:
            raise InputError(
                "an item of `batches` is one example (its target has no dimension): batches are needed, such as "
                "DataLoader(dataset, batch_size=...), or a target of shape (1,)"
            )
        size = _size(target, (args, kwargs))
        if not size:
            raise InputError("a batch holds no example: its tensors need a first dimension of at least 1")
        return Batch(args, kwargs, target, size)

    def _parts(self, item: Any) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
        if isinstance(item, Tensor):
            return (item,), {}, item
        if isinstance(item, Mapping):
            rest = dict(item)
            key = next((k for k in TARGET_KEYS if k in rest), None)
            target = None if key is None else rest[key] if self.keep_target else rest.pop(key)
            return *self._keywords(rest), target
        named = [f for f in TARGET_KEYS if f in getattr(item, "_fields", ())]
        if named:
            return tuple(getattr(item, f) for f in item._fields if f != named[0]), {}, getattr(item, named[0])
        if structure.opaque(item):
            target = next((getattr(item, k) for k in TARGET_KEYS if getattr(item, k, None) is not None), item)
            return (item,), {}, target
        if isinstance(item, list | tuple) and len(item) >= 2:
            *inputs, target = item
            if self.keep_target and self.forward is not None and self._binds(*inputs, target):
                return (*inputs, target), {}, target
            if len(inputs) > 1:
                return tuple(inputs), {}, target
            return *self._inputs(inputs[0], target), target
        raise InputError(
            f"a batch must be a tensor, a tuple (inputs, targets), a dict or an object with .to, received "
            f"{type(item).__name__}{f' of length {len(item)}' if hasattr(item, '__len__') else ''}"
        )

    def _inputs(self, inputs: Any, target: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if isinstance(inputs, Mapping):
            return self._keywords(dict(inputs))
        if structure.opaque(inputs) or not isinstance(inputs, list | tuple):
            return (inputs,), {}
        # A list beside a list of targets is a list of examples (detection); default_collate makes lists of tuples.
        examples = isinstance(inputs, list) and isinstance(target, list) and len(inputs) == len(target)
        if examples or not self._binds(*inputs):
            return (inputs,), {}
        return tuple(inputs), {}

    def _keywords(self, arguments: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if not self._binds(**arguments) and self._binds(arguments):
            return (arguments,), {}
        return (), arguments

    def _binds(self, *args: Any, **kwargs: Any) -> bool:
        if self.forward is None:
            return True
        try:
            inspect.signature(self.forward).bind(*args, **kwargs)
        except (TypeError, ValueError):
            return False
        return True


def as_batch(item: Any, *, keep_target: bool = False) -> Batch:
    """Read one item of a loader, see `Reader`."""
    return Reader(keep_target=keep_target)(item)


def source_of(batches: Any, *, own_targets: bool = True) -> Iterable[Any]:
    """The iterable of batches that was meant.

    A map-style or iterable `Dataset` is read in batches of 256.

    Args:
        batches: what the user gave.
        own_targets: a tensor alone would be taken for its own target, so that (x, y) is refused.

    Raises:
        InputError: a bare tuple (x, y), a single tensor or dict, or what cannot be iterated.
    """
    if isinstance(batches, Dataset | IterableDataset):
        return DataLoader(batches, batch_size=DATASET_BATCH)
    if isinstance(batches, tuple) and own_targets and len(batches) > 1 and all(isinstance(b, Tensor) for b in batches):
        raise InputError(
            f"batches is a tuple of {len(batches)} tensors: a list of batches is needed; for one batch (x, y) give "
            "[(x, y)]"
        )
    if isinstance(batches, Tensor | Mapping | nn.Module | str) or not isinstance(batches, Iterable):
        raise InputError(
            f"batches is of type {type(batches).__name__}: an iterable of batches is needed; for one batch give [batch]"
        )
    return batches


def generators_of(source: Any) -> list[torch.Generator]:
    """The generators that a DataLoader draws from whenever it is iterated: its own, and those of its samplers."""
    batch_sampler = getattr(source, "batch_sampler", None)
    drawing = [source, getattr(source, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None)]
    held = [getattr(holder, "generator", None) for holder in drawing]
    return list({id(g): g for g in held if isinstance(g, torch.Generator)}.values())


@dataclass
class Batches:
    """The batches of a Problem: iterating yields `Batch` on the device.

    They are kept in memory when they fit in a quarter of what is free, else read again from the source at every pass.

    Attributes:
        source: the user's iterable.
        reader: how its items are understood.
        device: where the tensors go.
        dtype: of floating-point tensors; None leaves them as they are.
        input_dtype: of the model's floating-point arguments alone; None leaves them as they are.
        weigh: c_b of a batch, from the item and the batch read from it.
        counted: number of examples of a batch whose class counts.
        sizes: examples in each batch.
        weights: c_b of each batch.
        classified: how many of them have a class that counts.
        kept: the batches, where they fit.
    """

    source: Iterable[Any]
    reader: Reader
    device: torch.device
    dtype: torch.dtype | None
    weigh: Callable[[Any, Batch], float]
    counted: Callable[[Batch], int]
    sizes: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    classified: int = 0
    kept: list[Batch] | None = None
    input_dtype: torch.dtype | None = None
    _copies: bool = False
    _fingerprint: str = ""

    @classmethod
    def read(
        cls,
        source: Iterable[Any],
        reader: Reader,
        device: torch.device,
        dtype: torch.dtype | None,
        weigh: Callable[[Any, Batch], float],
        counted: Callable[[Batch], int],
    ) -> Batches:
        """Read the source once, and keep the batches where they fit."""
        new = cls(source, reader, device, dtype, weigh, counted, _copies=isinstance(source, Iterator))
        new._read_once()
        if not new._copies and not isinstance(source, list | tuple) and _overwritten(new.kept):
            new._copies = True  # a loader that fills one buffer again and again
            new._read_once()
        if not new.sizes:
            raise InputError("the batches hold no example: an iterable of (inputs, targets) is needed")
        return new

    def _read_once(self) -> None:
        budget = math.inf if isinstance(self.source, Iterator) else 0.25 * free_memory(self.device)
        kept: list[Batch] | None = []
        used, self.sizes, self.weights, self.classified = 0, [], [], 0
        for batch in self._read():
            self.sizes.append(batch.size)
            self.weights.append(batch.weight)
            self.classified += self.counted(batch)
            used += sum(t.numel() * t.element_size() for t in batch.tensors())
            kept = kept if kept is not None and used <= budget else None
            if kept is not None:
                kept.append(batch)
        self.kept = kept

    def cast_inputs(self, dtype: torch.dtype) -> None:
        """Give the model's floating-point arguments this dtype; targets stay as they are."""
        self.input_dtype = dtype
        if self.kept is not None:
            self.kept = [self._cast(b) for b in self.kept]

    def _cast(self, batch: Batch) -> Batch:
        if self.input_dtype is None:
            return batch
        args, kwargs = structure.moved((batch.args, batch.kwargs), self.device, self.input_dtype)
        return replace(batch, args=args, kwargs=kwargs)

    @property
    def examples(self) -> int:
        """Number of examples."""
        return sum(self.sizes)

    @property
    def weight(self) -> float:
        """Sum of c_b."""
        return math.fsum(self.weights)

    def of(self, batches: Sequence[Batch]) -> Batches:
        """A set of batches that are on the device already, weighed like this one's."""
        made = [b if math.isfinite(b.weight) else replace(b, weight=self.weigh(None, b)) for b in batches]
        sizes, weights = [b.size for b in made], [b.weight for b in made]
        classified = sum(self.counted(b) for b in made)
        return replace(self, source=(), sizes=sizes, weights=weights, classified=classified, kept=made, _fingerprint="")

    def reweighed(self, weights: Sequence[float]) -> None:
        """Set c_b of each batch: what only evaluating shows."""
        self.weights = list(weights)
        if self.kept is not None:
            self.kept = [replace(b, weight=c) for b, c in zip(self.kept, weights, strict=True)]

    def _read(self) -> Iterator[Batch]:
        for i, raw in enumerate(self.source):
            item = structure.moved(raw, self.device, self.dtype)
            if self._copies:
                item = structure.mapped(item, torch.clone)
            batch = self._cast(replace(self.reader(item), number=i))
            # The weights of a second reading are those of the first: what weighing costs is paid once.
            weight = self.weights[i] if i < len(self.weights) else self.weigh(item, batch)
            yield replace(batch, weight=weight)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.kept) if self.kept is not None else self._read()

    def __len__(self) -> int:
        return len(self.sizes)

    def reread_differs(self) -> bool:
        """Whether the source gives another first batch when it is read once more (a shuffling or augmenting loader)."""
        if isinstance(self.source, Iterator | list | tuple):
            return False
        first, again = next(iter(self)), next(self._read(), None)
        if again is None:
            return True
        pairs = zip(first.tensors(), again.tensors(), strict=False)
        return first.size != again.size or any(a.shape != b.shape or not torch.equal(a, b) for a, b in pairs)

    def whole(self) -> Batch | None:
        """All examples as one batch; None where they are not kept, cannot be sliced, or their shapes differ."""
        if self.kept is None or not all(b.sliceable for b in self.kept):
            return None
        if len(self.kept) == 1:
            return self.kept[0]
        shapes = [structure.skeleton((b.args, b.kwargs, b.target)) for b in self.kept]
        if any(s != shapes[0] for s in shapes):
            return None  # other keys, constants or shapes: tensors would be joined that do not belong together
        lists = [b.tensors() for b in self.kept]
        joined = iter([torch.cat(column) for column in zip(*lists, strict=True)])
        whole = self.kept[0].map(lambda _: next(joined))
        return replace(whole, size=self.examples, weight=self.weight, number=None)

    def split(self, size: int) -> list[Batch]:
        """The examples in order, in batches of `size`; where shapes differ each batch is divided by itself."""
        whole = self.whole()
        parts = [whole] if whole is not None else self.kept
        if parts is None or not all(b.sliceable for b in parts):
            raise InputError("these batches cannot be regrouped: they do not fit in memory or hold no rows of examples")
        return [b.rows(i, min(i + size, b.size)) for b in parts for i in range(0, b.size, size)]

    def fingerprint(self) -> str:
        """SHA-256 of all tensors in order: names the fixed sample in a result's provenance. Computed once if kept."""
        if self.kept is not None and self._fingerprint:
            return self._fingerprint
        self._fingerprint = digest.of_tensors(tensor for batch in self for tensor in batch.tensors())
        return self._fingerprint


def _overwritten(kept: Sequence[Batch] | None) -> bool:
    """Whether two batches lie in the same memory."""
    places = [t.data_ptr() for b in kept or () for t in {id(t): t for t in b.tensors()}.values() if _has_place(t)]
    return len(places) > len(set(places))


def _has_place(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and tensor.numel() > 0


def _size(target: Any, inputs: Any) -> int:
    """Number of examples: the target's rows, else the first rows of the inputs."""
    if isinstance(target, Tensor) and target.dim():
        return target.shape[0]
    rows = _first_rows(inputs)
    if isinstance(target, list | tuple) and target and not hasattr(target, "_fields"):
        several = all(isinstance(t, Tensor) and t.dim() and len(t) == rows for t in target)
        return rows if several else len(target)
    return _first_rows(target) or rows


def _first_rows(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.size(0) if value.dim() else 0
    if isinstance(value, PackedSequence):
        return int(value.batch_sizes[0])
    if structure.opaque(value):
        graphs = getattr(value, "num_graphs", None)
        return graphs if isinstance(graphs, int) else 1
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return next((size for part in parts if (size := _first_rows(part))), 0)
