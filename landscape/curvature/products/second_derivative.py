"""Whether a computation can be differentiated twice, by which kernels, and which operation stands in the way."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from landscape.errors import InputError

T = TypeVar("T")


@contextlib.contextmanager
def twice_differentiable(model: nn.Module) -> Iterator[None]:
    """Kernels that have a second derivative, and a right one.

    Attention through the MATH backend, recurrent layers without cuDNN, weight normalization by its formula: the second
    derivative of the fused kernel is wrong (torch 2.13, CPU), silently.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if any(isinstance(m, nn.RNNBase) for m in model.modules()):
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        if any(_normalizes_weights(m) for m in model.modules()):
            stack.enter_context(_PlainWeightNorm())
        yield


class _PlainWeightNorm(TorchFunctionMode):
    """w = g v / ||v||, one operation after the other."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch._weight_norm:
            return _weight_norm(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    return v * (g / torch.norm_except_dim(v, 2, dim))


def _normalizes_weights(module: nn.Module) -> bool:
    hooks = [type(hook).__name__ for hook in module._forward_pre_hooks.values()]
    return type(module).__name__ == "_WeightNorm" or "WeightNorm" in hooks


def require(loss: Tensor) -> None:
    """Raise where the graph of a loss holds a custom function that was marked as differentiable once.

    Autograd itself stays silent: such a function cuts the second derivative off, and the products come out wrong.

    Raises:
        InputError: names the function.
    """
    for node in _nodes([loss.grad_fn]):
        function = getattr(node, "_forward_cls", None)
        backward = getattr(function, "backward", None)
        if getattr(getattr(backward, "__code__", None), "co_filename", "") == _ONCE:
            raise _missing(f"{function.__name__}, a custom function marked once_differentiable,")  # type: ignore[union-attr]


def custom_functions(loss: Tensor) -> list[str]:
    """Names of the functions of the user's own in the graph of a loss, whose backward torch takes at its word."""
    functions = (getattr(node, "_forward_cls", None) for node in _nodes([loss.grad_fn]))
    return sorted({f.__name__ for f in functions if f is not None and not f.__module__.startswith("torch.")})


def leaves(loss: Tensor) -> Iterator[Tensor]:
    """The tensors at which the graph of a loss ends."""
    for node in _nodes([loss.grad_fn]):
        if hasattr(node, "variable"):
            yield node.variable


def named(work: Callable[[], T]) -> T:
    """Run `work`; the failure of an operation without second derivative becomes an InputError that names it."""
    try:
        return work()
    except RuntimeError as error:
        match = re.search(r"derivative for (\S+) is not implemented", str(error)) or re.search(
            r"\b(\S+) does not support (?:double backward|higher order)", str(error)
        )
        if not match:
            raise
        raise _missing(match[1]) from error


def _missing(operation: str) -> InputError:
    return InputError(
        f"the model has no second derivative: {operation} cannot be differentiated twice; replace it, or take "
        'central differences: top_eigenvalues(problem, hvp="differences")'
    )


def _nodes(roots: Iterable[Any]) -> Iterator[Any]:
    stack, seen = [r for r in roots if r is not None], set()
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            yield node
            stack += [n for n, _ in node.next_functions if n is not None]


# The decorator's wrapper carries the file that defines it.
_ONCE = torch.autograd.function.once_differentiable.__code__.co_filename
