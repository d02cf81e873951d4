"""Lists of DTensors, as `fully_shard` makes them of parameters: the shards that are here, and numbers from all of them.

A list holds DTensors alone, all divided among the same processes, or none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def local(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The shards that this process holds, in the same memory; tensors that are no DTensors as they are."""
    if not _divided(tensors):
        return list(tensors)
    sharded: Sequence[Any] = tensors
    with torch.no_grad():
        return [t.to_local() for t in sharded]


def gathered(here: Tensor, tensors: Sequence[Tensor]) -> Tensor | None:
    """What each process has computed of its shards, stacked, the same on all: (processes, ...); one exchange.

    None where each process has the whole tensors. Of a mesh with replicas the processes are those that share one.
    """
    if not _divided(tensors):
        return None
    first: Any = tensors[0]
    mesh = first.device_mesh
    group = next((mesh.get_group(i) for i, p in enumerate(first.placements) if p.is_shard()), None)
    if group is None:
        return None
    values = [torch.empty_like(here) for _ in range(torch.distributed.get_world_size(group))]
    torch.distributed.all_gather(values, here.contiguous(), group)
    return torch.stack(values)


def part_of(whole: Tensor, like: Tensor) -> Tensor:
    """The tensor, which all processes have whole, divided as `like` is; itself where that is no DTensor."""
    if not _divided([like]):
        return whole
    from torch.distributed.tensor import distribute_tensor

    sharded: Any = like
    return distribute_tensor(whole, sharded.device_mesh, sharded.placements, src_data_rank=None)


def _divided(tensors: Sequence[Tensor]) -> bool:
    return len(tensors) > 0 and hasattr(tensors[0], "placements")
