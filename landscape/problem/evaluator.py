"""Evaluating a user's model at other weights while leaving it exactly as it was."""

from __future__ import annotations

import contextlib
import copy
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import checkpoint

from landscape.errors import InputError
from landscape.problem.parameters import Parameters

POLICIES = ("frozen", "batch", "recalibrate")
_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)
_BATCH_NORM = nn.modules.batchnorm._BatchNorm


def unwrapped(model: Any) -> nn.Module:
    """The network inside torch.compile, DataParallel and DistributedDataParallel.

    Raises:
        InputError: no module.
    """
    if isinstance(model, type):
        raise InputError(f"model is the class {model.__name__}: an instance is needed, {model.__name__}(...)")
    while isinstance(model, nn.Module):
        if type(model).__name__ == "OptimizedModule":
            model = model._orig_mod
        elif isinstance(model, _WRAPPERS):
            model = model.module
        else:
            return model
    raise InputError(
        f"model is a {type(model).__name__}: an nn.Module is needed; for a function of the module's outputs give the "
        "module, and objective=f(model, batch) or loss=f(outputs, targets)"
    )


def copied(model: nn.Module) -> nn.Module:
    """A deep copy, also of modules that keep computed tensors (weight_norm by hooks): without their graph in the copy.

    Raises:
        InputError: a network that fully_shard has divided.
    """
    if any(hasattr(p, "placements") for p in model.parameters()):
        raise InputError(
            "a network that fully_shard has divided cannot be copied: take problem.gathered(), whose weights are whole"
        )
    computed = [tensor for module in model.modules() for tensor in _computed(vars(module))]
    return copy.deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in computed})


def require_derivatives(what: str) -> None:
    """Raise InputError within torch.inference_mode(), in which nothing has a derivative."""
    if torch.is_inference_mode_enabled():
        raise InputError(f"{what} within torch.inference_mode(), which forbids derivatives: call it outside")


class Evaluator:
    """Binds flat-vector views to a model's parameters for the length of a context.

    The model's own tensors are never written: its parameter slots hold our tensors within the context, its buffers
    copies, its training flags those of the BatchNorm policy. Everything is put back afterwards, also after an
    exception. A tensor that is shared by several layers is bound in all of them.

    Args:
        model: any module.
        parameters: which tensors are bound.
        batch_norm: "frozen" (running statistics), "batch" (statistics of each batch) or "recalibrate" (running
            statistics estimated again at the weights in question, see `recalibrated`).
        evaluation_mode: False keeps the model's own training flags (then dropout stays as random as it was).

    Attributes:
        autocast: the dtype of the autocast region in which the Problem was made, None outside of one; every pass runs
            in the same.
        math_attention: attention runs through its MATH backend in every pass, not only in those that are
            differentiated twice: set where the backends compute different functions (see `checks`).
        graph_inside: forward() takes derivatives without asking for a graph, so that no pass may go without one.
    """

    def __init__(
        self, model: nn.Module, parameters: Parameters, batch_norm: str = "frozen", *, evaluation_mode: bool = True
    ) -> None:
        if batch_norm not in POLICIES:
            raise InputError(f"batch_norm must be one of {', '.join(POLICIES)}, received {batch_norm!r}")
        self.model, self.policy, self.evaluation_mode = model, batch_norm, evaluation_mode
        self._device = next(model.parameters()).device.type
        self.autocast = torch.get_autocast_dtype(self._device) if torch.is_autocast_enabled(self._device) else None
        self.math_attention = self.graph_inside = False
        self._compiled = any(_is_compiled(m) for m in model.modules())
        self._sparse = [m for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag) and m.sparse]
        self.batch_norms = [m for m in model.modules() if isinstance(m, _BATCH_NORM)]
        owners: dict[int, list[tuple[dict, str]]] = {}
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    owners.setdefault(id(parameter), []).append((module._parameters, name))
        named = dict(model.named_parameters())
        self._names = [*named]
        self._holders = [(n, m) for n, m in model.named_modules() if m._parameters or m._buffers]
        self._places = [owners[id(named[s.name])] for s in parameters]
        self._buffers: list[tuple[dict[str, Any], str]] = [
            (m._buffers, n) for m in model.modules() for n, b in m._buffers.items() if b is not None
        ]

    def rebound(self, model: nn.Module, parameters: Parameters, batch_norm: str | None = None) -> Evaluator:
        """The same way of evaluating other parameters, a copy of the model, or another BatchNorm policy."""
        return self._alike(type(self), model, parameters, batch_norm)

    def _alike(
        self, kind: type[Evaluator], model: nn.Module, parameters: Parameters, batch_norm: str | None = None
    ) -> Evaluator:
        other = kind(model, parameters, batch_norm or self.policy, evaluation_mode=self.evaluation_mode)
        other.autocast, other.math_attention = self.autocast, self.math_attention
        other.graph_inside = self.graph_inside
        return other

    def change(self, parameters: Parameters) -> str | None:
        """In which way the model has other tensors now than those that are bound, in words; None where it has not.

        Another tensor of the same shape in the same module is bound as the one before.
        """
        modules, named = dict(self.model.named_modules()), dict(self.model.named_parameters())
        for name, module in self._holders:
            if modules.get(name) is not module:
                return f"the layer {name!r} was {'replaced' if name in modules else 'removed'}"
        if other := sorted({*self._names} ^ {*named}):
            return f"the parameter {other[0]!r} was {'added' if other[0] in named else 'removed, or tied to another'}"
        for slot in parameters:
            if (shape := named[slot.name].shape) != slot.whole_shape:
                return f"{slot.name!r} has the shape {tuple(shape)}, it had {tuple(slot.whole_shape)}"
        norms = [m for m in self.model.modules() if isinstance(m, _BATCH_NORM)]
        return None if norms == self.batch_norms else "a BatchNorm layer was added"

    @contextlib.contextmanager
    def bound(self, tensors: Sequence[Tensor], statistics: Sequence[Tensor] | None = None) -> Iterator[None]:
        """Within the context the model computes with `tensors` (in the layout's order).

        Args:
            tensors: parameters in the layout's order.
            statistics: buffers to use instead of the model's, as `recalibrated` returns them.
        """
        modules = list(self.model.modules())
        flags = [m.training for m in modules]
        saved = [(d, n, d[n]) for d, n in self._buffers]
        try:
            for i, (buffers, name) in enumerate(self._buffers):
                buffers[name] = buffers[name].clone() if statistics is None else statistics[i]
            self._set_flags(modules)
            with self._lent(tensors), self._one_function():
                yield
        finally:
            for buffers, name, original in saved:
                buffers[name] = original
            for module, flag in zip(modules, flags, strict=True):
                module.training = flag

    @contextlib.contextmanager
    def _lent(self, tensors: Sequence[Tensor]) -> Iterator[None]:
        saved = [(d, n, d[n]) for places in self._places for d, n in places]
        try:
            for places, tensor in zip(self._places, tensors, strict=True):
                for slots, name in places:
                    slots[name] = tensor
            yield
        finally:
            for slots, name, original in saved:
                slots[name] = original

    def backward(self, loss: Tensor, leaves: Sequence[Tensor]) -> None:
        """Add the gradient of a loss, in the graph of the tensors that are bound, to what was added before."""
        loss.backward(inputs=list(leaves))

    def slopes(self, leaves: Sequence[Tensor]) -> list[Tensor]:
        """What `backward` has added up, one tensor per leaf."""
        return [torch.zeros_like(t) if t.grad is None else t.grad for t in leaves]

    def gradients(self, loss: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
        """The gradient of one loss, one tensor per leaf; zeros where it ends in none."""
        if not loss.requires_grad:
            return [torch.zeros_like(t) for t in leaves]
        parts = torch.autograd.grad(loss, list(leaves), allow_unused=True)
        return [torch.zeros_like(t) if g is None else g for g, t in zip(parts, leaves, strict=True)]

    def without_graph(self) -> contextlib.AbstractContextManager[None]:
        """No graph of derivatives, unless forward() needs one inside."""
        return torch.enable_grad() if self.graph_inside else torch.no_grad()

    @contextlib.contextmanager
    def _one_function(self) -> Iterator[None]:
        """What makes passes with a graph and without one compute the same."""
        fast_path = torch.backends.mha.get_fastpath_enabled()
        with contextlib.ExitStack() as stack:
            stack.enter_context(_reentrant_checkpoints_refused())
            stack.enter_context(_computed_attributes(self.model))
            if fast_path:
                # It returns zeros at padded positions, and only without a graph.
                torch.backends.mha.set_fastpath_enabled(False)
                stack.callback(torch.backends.mha.set_fastpath_enabled, True)
            if self.autocast is not None or torch.is_autocast_enabled(self._device):
                enabled = self.autocast is not None
                stack.enter_context(torch.autocast(self._device, self.autocast, enabled=enabled))
            for module in self._sparse:
                # The same function; a sparse gradient has no flat vector and no second derivative.
                stack.callback(setattr, module, "sparse", module.sparse)
                module.sparse = False
            if self.math_attention:
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            if self._compiled:
                # A compiled function has no second derivative.
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            yield

    def _set_flags(self, modules: Sequence[nn.Module]) -> None:
        if self.evaluation_mode:
            for module in modules:
                module.training = False
        if self.policy == "batch":
            for norm in self.batch_norms:
                norm.training = True

    def recalibrated(self, tensors: Sequence[Tensor], forward: Iterator[None]) -> list[Tensor]:
        """Buffers whose BatchNorm statistics are averaged over the forward passes that `forward` makes.

        Every running mean and variance is the cumulative average over the batches (momentum None), from scratch.
        """
        momenta = [norm.momentum for norm in self.batch_norms]
        try:
            with self.without_graph(), self.bound(tensors):
                for norm in self.batch_norms:
                    norm.momentum, norm.training = None, True
                    norm.reset_running_stats()
                for _ in forward:
                    pass
                return [buffers[name] for buffers, name in self._buffers]
        finally:
            for norm, momentum in zip(self.batch_norms, momenta, strict=True):
                norm.momentum = momentum


class _Refused:
    """In the place of re-entrant checkpointing, whose backward knows the model's tensors and not those bound here.

    Torch tells in some places only: where no input of the block needs a gradient, its weights silently get none.
    """

    @staticmethod
    def apply(function: Callable[..., Any], preserve: bool, *arguments: Any) -> Any:
        if torch.is_grad_enabled():
            raise InputError(
                "the model checkpoints activations re-entrantly, which loses derivatives here: call "
                "torch.utils.checkpoint.checkpoint with use_reentrant=False"
            )
        return function(*arguments)


@contextlib.contextmanager
def _reentrant_checkpoints_refused() -> Iterator[None]:
    original = checkpoint.CheckpointFunction
    checkpoint.CheckpointFunction = _Refused  # type: ignore[misc,assignment]
    try:
        yield
    finally:
        checkpoint.CheckpointFunction = original  # type: ignore[misc]


def _is_compiled(module: nn.Module) -> bool:
    return type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None


def _computed(held: Any) -> Iterator[Tensor]:
    """Tensors with a graph behind them, in containers too: what a hook or a pass computed from parameters."""
    if isinstance(held, Tensor):
        if held.grad_fn is not None:
            yield held
    elif isinstance(held, Mapping):
        yield from _computed(list(held.values()))
    elif isinstance(held, list | tuple | set | deque):
        for value in held:
            yield from _computed(value)


@contextlib.contextmanager
def _computed_attributes(model: nn.Module) -> Iterator[None]:
    """Plain attributes that hold tensors are as they were after the context (weight_norm by hooks writes one)."""
    hooked = [m for m in model.modules() if m._forward_pre_hooks]
    saved = [(m, {k: v for k, v in vars(m).items() if isinstance(v, Tensor)}) for m in hooked]
    try:
        yield
    finally:
        for module, attributes in saved:
            vars(module).update(attributes)
