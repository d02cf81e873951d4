"""The tensors in a file under dotted names, and where among them a network's names are found."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from landscape.checkpoint.pickles import Ignored
from landscape.errors import InputError

WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
"""Components that torch.compile, FSDP, activation checkpoints and DeepSpeed put into names, also within a network."""


@dataclass
class Tensors:
    """All tensors of a file: dotted name -> tensor, from the outermost key to the innermost.

    Attributes:
        named: the tensors.
        container: name -> dotted name of the mapping that holds it, "" for the outermost.
        packed: names of values that only a quantized network stores.
        arrays: names of NumPy arrays, which are passed over.
    """

    named: dict[str, Tensor] = field(default_factory=dict)
    container: dict[str, str] = field(default_factory=dict)
    packed: list[str] = field(default_factory=list)
    arrays: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, content: Any) -> Tensors:
        """The tensors in nested mappings, lists and tuples."""
        tensors = cls()
        tensors._add(content, "")
        return tensors

    def _add(self, content: Any, within: str) -> None:
        items = content.items() if isinstance(content, Mapping) else enumerate(content)
        for key, value in items:
            name = f"{within}.{key}" if within else str(key)
            if isinstance(value, Tensor):
                self.named[name], self.container[name] = value, within
            if "_packed_params" in name or (isinstance(value, Tensor) and value.is_quantized):
                self.packed.append(name)
            elif isinstance(value, Ignored) and value.is_array:
                self.arrays.append(name)
            elif isinstance(value, Mapping | list | tuple):
                self._add(value, name)

    def below(self, key: str) -> Tensors:
        """Those whose names begin with `key` as whole components; "" is the outermost mapping's own."""
        inside = f"{key}." if key else ""
        names = [n for n, c in self.container.items() if n.startswith(inside) and (key or not c)]
        return Tensors({n: self.named[n] for n in names}, {n: self.container[n] for n in names}, self.packed)

    def renamed(self, renames: Sequence[str]) -> Tensors:
        """With the components OLD of a name called NEW, for every "OLD=NEW".

        Raises:
            InputError: not of that form, no tensor has such a name, two tensors would have one name.
        """
        tensors = self
        for text in renames:
            old, equals, new = text.partition("=")
            if not equals or not old or not new:
                raise InputError(f"--rename {text!r}: OLD=NEW is needed, parts of the names of tensors")
            pattern = re.compile(rf"(?<![^.]){re.escape(old)}(?![^.])")
            names = {name: pattern.sub(new.replace("\\", r"\\"), name) for name in tensors.named}
            if all(name == renamed for name, renamed in names.items()):
                raise InputError(f"--rename {text!r}: no tensor of the file has {old!r} in its name")
            if len(set(names.values())) < len(names):
                raise InputError(f"--rename {text!r}: two tensors of the file would have one name")
            tensors = Tensors(
                {names[n]: t for n, t in tensors.named.items()},
                {names[n]: c for n, c in tensors.container.items()},
                tensors.packed,
            )
        return tensors

    def unwrapped(self, needed: Iterable[str]) -> Tensors:
        """Without the components of `WRAPPERS` that the network, whose names are `needed`, has not."""
        dropped = set(WRAPPERS) - {part for name in needed for part in name.split(".")}
        names = {name: _without(name, dropped) for name in self.named}
        if len(set(names.values())) < len(names):  # the wrapped and the plain network are both there
            return self
        containers = {names[n]: _without(c, dropped) for n, c in self.container.items()}
        return Tensors({names[n]: t for n, t in self.named.items()}, containers, self.packed, self.arrays)

    def summary(self, most: int = 8) -> str:
        """The containers with the numbers of their tensors."""
        counts = Counter(c or "(outermost)" for c in self.container.values())
        shown = [f"{c} ({n} tensors)" for c, n in counts.most_common(most)]
        return ", ".join(shown) + (f" and {len(counts) - most} more" if len(counts) > most else "")


def _without(name: str, dropped: Collection[str]) -> str:
    return ".".join(part for part in name.split(".") if part not in dropped)


@dataclass(frozen=True)
class Reading:
    """One way to read a network's names in a file: file name = `prefix` + name without `dropped`.

    Attributes:
        prefix: of the file's names, "" or with a final dot.
        dropped: prefix of the network's names that the file lacks, likewise.
        names: the network's name -> the file's, of equal shape.
    """

    prefix: str
    dropped: str
    names: dict[str, str]

    def in_file(self, name: str) -> str:
        """The name of the network's tensor in the file."""
        return self.prefix + name.removeprefix(self.dropped)


def readings(tensors: Tensors, needed: Mapping[str, Tensor], required: Sequence[tuple[str, ...]]) -> list[Reading]:
    """The readings that supply one name of each in `required`, else those that supply most; none where nothing fits.

    A prefix is taken off the names in a mapping only where its names as they are do not fit, and one is taken off the
    network's names only where nothing else fits.
    """
    best: list[Reading] = []
    for dropped in _common_prefixes(needed):
        fitting = _under(tensors, needed, dropped)
        complete = _unstripped(
            [r for r in fitting if all(any(n in r.names for n in ties) for ties in required)], tensors
        )
        if complete:
            return complete
        best += fitting
    most = max((len(r.names) for r in best), default=0)
    return _unstripped([r for r in best if len(r.names) == most], tensors)


def _under(tensors: Tensors, needed: Mapping[str, Tensor], dropped: str) -> list[Reading]:
    short = {name.removeprefix(dropped): name for name in needed}
    names: dict[str, dict[str, str]] = {}
    for name, tensor in tensors.named.items():
        starts = [0, *(i + 1 for i, c in enumerate(name) if c == ".")]
        for start in starts:
            ours = short.get(name[start:])
            if ours is not None and needed[ours].shape == tensor.shape:
                names.setdefault(name[:start], {})[ours] = name
    return [Reading(prefix, dropped, matched) for prefix, matched in names.items()]


def _common_prefixes(names: Iterable[str]) -> list[str]:
    """The empty prefix, then the dotted ones that all names share, the shortest first."""
    names = list(names)
    first = min(names, default="").split(".")
    prefixes = ["".join(f"{part}." for part in first[:i]) for i in range(len(first))]
    return [p for p in prefixes if all(name.startswith(p) for name in names)]


def _unstripped(candidates: list[Reading], tensors: Tensors) -> list[Reading]:
    """Without those that strip a prefix from names of a mapping in which another fits unstripped."""
    whole = {r.prefix for r in candidates if _container(r, tensors) == r.prefix}
    return [r for r in candidates if r.prefix in whole or _container(r, tensors) not in whole]


def _container(reading: Reading, tensors: Tensors) -> str:
    """The longest name of a mapping that the reading's prefix begins with, with a final dot."""
    first = min((tensors.container[name] for name in reading.names.values()), key=len)
    within = f"{first}." if first else ""
    return within if reading.prefix.startswith(within) else reading.prefix


def different(candidates: list[Reading], tensors: Tensors, path: str | Path) -> list[Reading]:
    """The readings whose tensors are not those of an earlier one.

    Raises:
        InputError: see `require_numbers`.
    """
    kept: list[Reading] = []
    for reading in candidates:
        for name in reading.names.values():
            require_numbers(path, name, tensors.named[name])
        if not any(_equal(reading, other, tensors) for other in kept):
            kept.append(reading)
    return kept


def _equal(a: Reading, b: Reading, tensors: Tensors) -> bool:
    return a.names.keys() == b.names.keys() and all(
        torch.equal(tensors.named[a.names[n]], tensors.named[b.names[n]]) for n in a.names
    )


def require_numbers(path: str | Path, name: str, tensor: Tensor) -> None:
    """Raise InputError unless a tensor is dense and its file holds all its entries: strides of 0 make any size."""
    if tensor.layout is not torch.strided:
        raise InputError(f"{path}: {name} is stored as {tensor.layout}: save it again after .to_dense()")
    if tensor.is_meta:
        raise InputError(
            f"{path}: {name} holds no numbers (device meta): save the state dict of a network that has some"
        )
    held = tensor.untyped_storage().nbytes() // tensor.element_size()
    if tensor.numel() > held:
        raise InputError(
            f"{path}: {name} has {tensor.numel()} entries but the file holds {held}: save it again after .contiguous()"
        )


def shown(
    tensors: Mapping[str, Tensor], names: Sequence[str], near: Mapping[str, Tensor] | None = None, most: int = 3
) -> str:
    """Names with shapes, each with the nearest of `near`; the first `most` of them."""
    texts = []
    for name in names[:most]:
        alike = _nearest(name, tensors[name], near or {})
        texts.append(f"{name} {tuple(tensors[name].shape)}" + (f" (nearest: {alike})" if alike else ""))
    return ", ".join(texts) + (f" and {len(names) - most} more" if len(names) > most else "")


def _nearest(name: str, tensor: Tensor, near: Mapping[str, Tensor]) -> str:
    """The name most like this one, of a tensor of the same shape where there is one; "" where none is alike."""
    fitting = [n for n, t in near.items() if t.shape == tensor.shape]
    alike = difflib.get_close_matches(name, fitting or list(near), n=1, cutoff=0.0 if fitting else 0.4)
    return alike[0] if alike else ""
