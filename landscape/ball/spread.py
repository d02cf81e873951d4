"""Vectors that are spread over processes: each holds some of the entries, and sums over them cross to the others.

In training a vector is a list of DTensors, as `fully_shard` makes them of parameters; a flat one is a `SpreadVector`.
The type of a tensor says that it is a part: what works entry by entry keeps it, and what would need all entries is
refused, except in `landscape.ball.vectors` and `landscape.random`, which ask the other processes. A sum that was
forgotten is then an error and no wrong number.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor

from landscape.errors import InputError

_SUMS = """
    sum mean norm vector_norm linalg_norm linalg_vector_norm matrix_norm dot vdot inner max min amax amin aminmax argmax
    argmin prod std var any all median quantile sort topk cumsum logsumexp allclose equal count_nonzero nonzero unique
    histc bincount item tolist numpy matmul __matmul__ __rmatmul__ mv mm _foreach_norm einsum tensordot dist cdist
    nansum nanmean nanmedian nanquantile std_mean var_mean mode kthvalue msort cumprod cummax cummin logcumsumexp
    softmax log_softmax histogram trapezoid renorm normalize cosine_similarity pairwise_distance mse_loss l1_loss
    __array__ __float__ __int__
"""
_REFUSED = frozenset(_SUMS.split())


@dataclass(frozen=True, eq=False)
class Spread:
    """Which entries of a whole vector this process holds.

    Attributes:
        group: the processes that hold one vector together.
        ranges: (start, stop) in the whole vector of the entries that are here, in their order.
        length: d, entries of the whole vector.
    """

    group: Any
    ranges: tuple[tuple[int, int], ...]
    length: int

    @classmethod
    def of(cls, group: Any, ranges: tuple[tuple[int, int], ...], length: int) -> Spread:
        """The one of these arguments: vectors of two Problems of one network are spread alike."""
        key = id(group), ranges, length
        spread = _ALIVE.get(key)
        if spread is None:
            spread = _ALIVE[key] = cls(group, ranges, length)
        return spread

    def here(self, whole: Tensor) -> Tensor:
        """The entries of a whole vector (d,) that belong here."""
        return torch.cat([whole[start:stop] for start, stop in self.ranges]).as_subclass(self.type)

    def whole(self, part: Tensor) -> Tensor:
        """The whole vector (d,), on every process. Cost: an all-reduce of d entries."""
        result, at = part.new_zeros(self.length).as_subclass(Tensor), 0
        for start, stop in self.ranges:
            result[start:stop] = plain(part)[at : at + stop - start]
            at += stop - start
        torch.distributed.all_reduce(result, group=self.group)
        return result

    def gathered(self, value: Tensor) -> Tensor:
        """What each process holds, stacked: (processes, ...), the same everywhere."""
        return _from_all(plain(value), self.group)

    @property
    def type(self) -> type[SpreadVector]:
        """The type of the parts of these vectors."""
        if "_type" not in self.__dict__:
            object.__setattr__(self, "_type", type("SpreadVector", (SpreadVector,), {"spread": self}))
        return self.__dict__["_type"]


_ALIVE: weakref.WeakValueDictionary[Any, Spread] = weakref.WeakValueDictionary()
"""Those in use; each keeps its group, so that no other has its id."""


class SpreadVector(Tensor):
    """This process's part of a vector (or of several, as rows)."""

    spread: ClassVar[Spread]

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Entry by entry as on any tensor; anything that would sum up the part alone is refused."""
        if function.__name__ in _REFUSED:
            raise InputError(
                f"{function.__name__} of a vector that is spread over processes would be that of this process's part: "
                "take norm and dot of landscape.ball.vectors, or problem.whole(vector) first"
            )
        if function.__name__ == "to" and not isinstance(args[0], SpreadVector) and args[0].dim():
            part = next(a for a in (*args, *(kwargs or {}).values()) if isinstance(a, SpreadVector))
            if args[0].shape[-1] == part.spread.length != part.shape[-1]:
                raise InputError(
                    f"a whole vector of {part.spread.length} entries is no part of one that is spread over processes: "
                    "spread.here(vector) takes the entries that belong here"
                )
        return super().__torch_function__(function, types, args, kwargs or {})

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        """A part is no vector: refused."""
        raise InputError("a vector that is spread over processes is not saved part by part: save problem.whole(vector)")

    def __repr__(self) -> str:  # type: ignore[override]
        """The part's size; its entries would pass for the vector's."""
        return f"SpreadVector({self.numel()} of {self.spread.length} entries here)"


def spread_of(a: Tensor | Sequence[Tensor]) -> Spread | None:
    """How a vector, or a list of tensors that stands for one, is spread; None where all of it is here."""
    first = a if isinstance(a, Tensor) else next((t for t in a if isinstance(t, SpreadVector)), None)
    return first.spread if isinstance(first, SpreadVector) else None


def plain(a: Tensor) -> Tensor:
    """The part of a vector or DTensor that is here as an ordinary tensor, in the same memory."""
    if isinstance(a, SpreadVector):
        return a.as_subclass(Tensor)
    if _is_dtensor(a):
        with torch.no_grad():
            return a.to_local()  # type: ignore[attr-defined]
    return a


def local(tensors: Sequence[Tensor]) -> list[Tensor]:
    """`plain` of each; a list holds parts of the same processes alone, or none."""
    return [plain(t) for t in tensors] if tensors and type(tensors[0]) is not Tensor else list(tensors)


def gathered(here: Tensor, a: Tensor | Sequence[Tensor]) -> Tensor | None:
    """What each process has computed of its part of `a`, stacked, the same on all: (processes, ...); one exchange.

    None where all of `a` is here. Of a mesh with replicas the processes are those that hold one vector together.
    """
    first: Any = a if isinstance(a, Tensor) else a[0] if a else None
    if isinstance(first, SpreadVector):
        return first.spread.gathered(here)
    if not _is_dtensor(first):
        return None
    mesh = first.device_mesh
    group = next((mesh.get_group(i) for i, p in enumerate(first.placements) if p.is_shard()), None)
    if group is None:
        return None
    return _from_all(here, group)


def part_of(whole: Tensor, like: Tensor) -> Tensor:
    """The tensor, which all processes have whole, divided as the DTensor `like` is; itself where that is none."""
    if not _is_dtensor(like):
        return whole
    from torch.distributed.tensor import distribute_tensor

    sharded: Any = like
    return distribute_tensor(whole, sharded.device_mesh, sharded.placements, src_data_rank=None)


def _is_dtensor(tensor: Any) -> bool:
    return hasattr(tensor, "placements")


def _from_all(value: Tensor, group: Any) -> Tensor:
    value = value.contiguous()
    parts = [torch.empty_like(value) for _ in range(torch.distributed.get_world_size(group))]
    torch.distributed.all_gather(parts, value, group=group)
    return torch.stack(parts)
