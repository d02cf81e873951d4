"""The processes of `torch.distributed`: who this one is, and a group that is left without a trace."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed
from torch import Tensor

from landscape.errors import InputError

T = TypeVar("T")

if torch.distributed.is_available():
    # Its functions take the group of all processes as a default, evaluated when it is imported: imported later (by
    # DistributedDataParallel, too), they would hold a group for ever. Gloo's threads would then outlive
    # destroy_process_group(), and one that drops a tensor while the interpreter ends aborts a run that has succeeded.
    import torch.distributed.nn.functional


def in_group() -> bool:
    """Whether this process belongs to a group."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def rank() -> int:
    """Number of this process in its group; 0 where there is none."""
    return torch.distributed.get_rank() if in_group() else 0


def world() -> int:
    """Number of processes in the group; 1 where there is none."""
    return torch.distributed.get_world_size() if in_group() else 1


def agree(value: T) -> T:
    """The value of process 0, in all of them."""
    if world() == 1:
        return value
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def on_first(compute: Callable[[], T]) -> T:
    """What process 0 computes, in all of them; an InputError that it raises is raised in all of them."""
    if world() == 1:
        return compute()
    outcome: tuple[Any, str | None] = None, None
    if rank() == 0:
        try:
            outcome = compute(), None
        except InputError as error:
            outcome = None, str(error)
    value, message = agree(outcome)
    if message is not None:
        raise InputError(message)
    return value


def broadcast(tensor: Tensor) -> None:
    """Give all processes the tensor of process 0, in place."""
    if world() > 1:
        torch.distributed.broadcast(tensor, src=0)


def gather(value: T) -> list[T]:
    """What each process holds, in the order of their ranks."""
    if world() == 1:
        return [value]
    everyone: list[Any] = [None] * world()
    torch.distributed.all_gather_object(everyone, value)
    return everyone


def launched() -> bool:
    """Whether torchrun started this process beside others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextlib.contextmanager
def process_group(device: torch.device | str = "cpu") -> Iterator[int]:
    """Join the processes that torchrun started, if it did, for as long as the context lasts; yields the rank.

    Tensors on GPUs go through NCCL, everything else through gloo; `device` becomes the current one if it is a GPU.
    """
    if not launched():
        yield 0
        return
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield rank()
    finally:
        gc.collect()  # the cycles of a DDP model hold the group, as the comment above says of a default
        torch.distributed.destroy_process_group()
