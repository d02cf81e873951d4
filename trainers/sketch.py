"""Networks without memory, built to see whether and how large they can be."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class _Uninitialized(TorchFunctionMode):
    """Leaves out initial values: to draw them where there is no memory torch imports its compiler, a second long."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in (torch.Tensor.normal_, torch.Tensor.uniform_):
            return args[0]
        if getattr(function, "__module__", "") == torch.nn.init.__name__:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return function(*args, **kwargs)


@contextlib.contextmanager
def sketching() -> Iterator[None]:
    """Within the context networks are built on the device "meta"."""
    with torch.device("meta"), _Uninitialized():
        yield
