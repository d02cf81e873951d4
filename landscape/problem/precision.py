"""How coarsely a loss is computed: a network may compute in another dtype than its weights have.

Autocast within forward() and conversions by hand do so; so do the losses and normalizations of transformers, which are
computed in float32 whatever the weights are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from landscape.errors import InputError
from landscape.problem import structure
from landscape.problem.batches import Batch
from landscape.random import forked

if TYPE_CHECKING:
    from landscape.problem.problem import Problem


def coarsest(problem: Problem) -> torch.dtype:
    """The coarsest dtype on the way from the weights to the loss of a batch.

    Seen are the weights, what modules return, and whatever a torch function returns that follows the weights (not in a
    network that cannot be differentiated: no derivative will be taken there).

    Cost: a forward pass over two examples, with its graph; over a whole batch that cannot be divided.
    """
    batch = next(problem.weighted_batches(), None) or next(iter(problem.batches))
    for part in [batch.rows(0, 2), batch] if batch.sliceable else [batch]:
        with contextlib.suppress(InputError):  # a model that cannot take a part of a batch, or cannot be differentiated
            return _seen(problem, part)
    return _seen(problem, batch, graph=False)


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Within the context products and convolutions in float32 may, or may not, take TF32 on a GPU."""
    switches = list(_switches())
    before = [getattr(holder, name) for holder, name, _ in switches]
    try:
        for holder, name, values in switches:
            setattr(holder, name, values[allowed])
        yield
    finally:
        for (holder, name, _), value in zip(switches, before, strict=True):
            setattr(holder, name, value)


def _switches() -> Iterator[tuple[Any, str, tuple[Any, Any]]]:
    """(holder, attribute, (values that forbid and allow TF32)) of products and of convolutions.

    torch 2.9 renamed them, and refuses to read the former name once the new one was written.
    """
    convolution = getattr(torch.backends.cudnn, "conv", None)
    for holder in (torch.backends.cuda.matmul, torch.backends.cudnn if convolution is None else convolution):
        former = convolution is None
        yield (holder, "allow_tf32", (False, True)) if former else (holder, "fp32_precision", ("ieee", "tf32"))


def _seen(problem: Problem, few: Batch, graph: bool = True) -> torch.dtype:
    dtypes, leaves = {s.dtype for s in problem.parameters}, problem.bindable()
    with contextlib.ExitStack() as stack:
        stack.enter_context(problem.uncounted())
        stack.enter_context(forked())
        for module in (m for m in problem.model.modules() if not isinstance(m, torch.jit.ScriptModule)):
            stack.callback(module.register_forward_hook(_Returned(dtypes)).remove)
        stack.enter_context(torch.set_grad_enabled(graph))
        stack.enter_context(problem.bound_tensors(leaves))
        stack.enter_context(_Followed(dtypes))
        problem.batch_loss(problem.forward(few), few)
    return max(dtypes, key=lambda d: torch.finfo(d).eps)


class _Returned:
    """A hook that notes the dtypes of what modules return."""

    def __init__(self, dtypes: set[torch.dtype]) -> None:
        self.dtypes = dtypes

    def __call__(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        self.dtypes.update(_floating(output))


class _Followed(TorchFunctionMode):
    """Notes the dtypes of what torch's functions return in the graph of the weights."""

    def __init__(self, dtypes: set[torch.dtype]) -> None:
        super().__init__()
        self.dtypes = dtypes

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = function(*args, **(kwargs or {}))
        if isinstance(returned, Tensor | tuple | list):
            self.dtypes.update(_floating(returned, following=True))
        return returned


def _floating(value: Any, following: bool = False) -> Iterator[torch.dtype]:
    tensors = [value] if isinstance(value, Tensor) else structure.tensors(value)
    return (t.dtype for t in tensors if t.is_floating_point() and (t.requires_grad or not following))
