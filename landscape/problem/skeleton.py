"""A copy of a network without what `fully_shard` has put into it: its classes and hooks, and the shards themselves."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

_HOOKS = (
    "_forward_pre_hooks",
    "_forward_hooks",
    "_state_dict_pre_hooks",
    "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
)

_STATE = "__composable_api"
"""How the attributes begin in which fully_shard keeps its state."""


def skeleton(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A deep copy whose parameters of these dotted names are these tensors; parameters that layers share stay shared.

    Hooks of the user's own are copied; those of `torch.distributed` are left out.
    """
    memo: dict[int, Any] = {}
    for name, parameter in model.named_parameters():
        if name in tensors:
            memo[id(parameter)] = nn.Parameter(tensors[name], requires_grad=parameter.requires_grad)
    with _bare(model):
        return copy.deepcopy(model, memo)


@contextlib.contextmanager
def _bare(model: nn.Module) -> Iterator[None]:
    """Within the context the modules have their own classes, and neither hooks nor state of `torch.distributed`."""
    modules = list(model.modules())
    classes, attributes = [type(m) for m in modules], [dict(vars(m)) for m in modules]
    try:
        for module, kind, held in zip(modules, classes, attributes, strict=True):
            if hasattr(module, "_get_fsdp_state"):
                module.__class__ = kind.__mro__[2]  # FSDPLinear, FSDPModule, Linear
            for name, value in held.items():
                if name in _HOOKS:
                    vars(module)[name] = type(value)((k, h) for k, h in value.items() if not _of_torch(h))
                elif name.startswith(_STATE):
                    del vars(module)[name]
        yield
    finally:
        for module, kind, held in zip(modules, classes, attributes, strict=True):
            module.__class__ = kind
            vars(module).update(held)


def _of_torch(hook: Any) -> bool:
    function = getattr(hook, "hook", hook)  # a hook that is kept with its module
    function = getattr(function, "func", function)  # functools.partial
    return str(getattr(function, "__module__", "")).startswith("torch.distributed")
