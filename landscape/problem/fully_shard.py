"""What `torch.distributed.fsdp.fully_shard` keeps in the modules that it was applied to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

from landscape.errors import InputError


def units(model: nn.Module) -> Iterator[Any]:
    """The modules that `fully_shard` was applied to."""
    return (m for m in model.modules() if any(kind.__name__ == "FSDPModule" for kind in type(m).__mro__))


def groups(model: nn.Module) -> Iterator[Any]:
    """Their groups of parameters, which are gathered and reduced together."""
    for module in units(model):
        state = module._get_fsdp_state()
        held = getattr(state, "_fsdp_param_groups", None) or [getattr(state, "_fsdp_param_group", None)]
        yield from (g for g in held if g is not None)  # none where the layers hold all of its parameters


def reshard(model: nn.Module) -> None:
    """Let go of the gathered parameters, which a pass may leave behind.

    A forward pass without a backward pass leaves the root's, `set_reshard_after_backward(False)` all of them: the next
    pass would compute with these and not see what has been written to the shards.
    """
    for module in units(model):
        module.reshard()


def abandon_pass(model: nn.Module) -> None:
    """Let go of what a pass that an exception has ended left behind: gathered parameters, gradients on their way."""
    for module in units(model):
        with contextlib.suppress(RuntimeError):  # not the outermost, which takes the others along
            getattr(module, "reset_iter_state", module.reshard)()  # torch before 2.13 has no other


def has_shards(model: nn.Module) -> bool:
    """Whether a parameter is divided among processes.

    Raises:
        InputError: FSDP1, whose flat parameters nobody else knows.
    """
    if any(type(m).__name__ == "FullyShardedDataParallel" for m in model.modules()):
        raise InputError(
            "the model is in FullyShardedDataParallel (FSDP1), whose flat parameters nothing else knows: use "
            "torch.distributed.fsdp.fully_shard instead"
        )
    reshard(model)
    return any(hasattr(p, "placements") for p in model.parameters())


def unreduced(model: nn.Module) -> bool:
    """Whether gradients wait to be summed over the processes, as after `set_requires_gradient_sync(False)`."""
    for group in groups(model):
        if getattr(group, "_partial_reduce_output", None) is not None:
            return True
        if any(_waits(p) for p in getattr(group, "fsdp_params", ())):
            return True
    return False


def postpones(model: nn.Module) -> bool:
    """Whether `set_is_last_backward(False)` is in force."""
    states = (module._get_fsdp_state() for module in units(model))
    return not all(getattr(getattr(s, "_state_ctx", None), "is_last_backward", True) for s in states)


def _waits(parameter: Any) -> bool:
    whole = getattr(parameter, "_unsharded_param", None)
    return parameter.unsharded_accumulated_grad is not None or (whole is not None and whole.grad is not None)
