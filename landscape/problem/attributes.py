"""What a network keeps in plain attributes, beside parameters and buffers: counters, running means, caches."""

from __future__ import annotations

import contextlib
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

_OF_TORCH = frozenset(vars(nn.Module()))


@contextlib.contextmanager
def attributes_kept(model: nn.Module) -> Iterator[None]:
    """After the context the plain attributes of all modules are as they were.

    Attributes that forward() sets, adds or deletes; tensors that it changes in place; items that it adds to or removes
    from a list, dict, set or deque. Not what is deeper: attributes of other objects, tensors within containers.

    Cost: a copy of the tensors.
    """
    undo = [_undo(module) for module in model.modules()]
    try:
        yield
    finally:
        for put_back in undo:
            put_back()


def _undo(module: nn.Module) -> Callable[[], None]:
    held = {name: value for name, value in vars(module).items() if name not in _OF_TORCH}
    contents = [undo for value in held.values() if (undo := _undo_inside(value)) is not None]

    def put_back() -> None:
        now = vars(module)
        for name in [n for n in now if n not in held and n not in _OF_TORCH]:
            del now[name]
        now.update(held)
        for undo in contents:
            undo()

    return put_back


def _undo_inside(value: Any) -> Callable[[], None] | None:
    """What puts back the content of a tensor or container; None for anything else."""
    if isinstance(value, Tensor):
        # A tensor made in inference mode counts no versions, and is constant outside of it.
        return None if value.is_inference() else _undo_tensor(value)
    if type(value) in (list, deque, dict, OrderedDict, defaultdict, set):
        return _undo_container(value)
    return None


def _undo_container(container: Any) -> Callable[[], None]:
    copy = container.copy()
    add = container.extend if isinstance(container, list | deque) else container.update

    def put_back() -> None:
        container.clear()
        add(copy)

    return put_back


def _undo_tensor(tensor: Tensor) -> Callable[[], None]:
    version, copy = tensor._version, tensor.detach().clone()

    def put_back() -> None:
        if tensor._version != version:
            tensor.data.copy_(copy)

    return put_back
