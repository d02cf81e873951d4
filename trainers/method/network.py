"""What training does to a module besides calling it: freezing statistics, lending weights, equal dropout masks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from landscape.problem import outputs as outputs_module
from landscape.processes import in_group


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside DistributedDataParallel or DataParallel; any other module itself."""
    wrappers = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    return model.module if isinstance(model, wrappers) else model


def logits_of(outputs: Any) -> Tensor:
    """The tensor that a loss compares, half precision widened to float32: sums lose no digits to an autocast."""
    logits = outputs_module.logits_of(outputs)
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


@contextlib.contextmanager
def autocast(device: torch.device, dtype: torch.dtype | None) -> Iterator[None]:
    """Context of one pass: in `dtype`, or None as the caller has it.

    An autocast region around it has kept cast weights of the passes before, which a step has moved since.
    """
    torch.clear_autocast_cache()
    with contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype):
        yield


def equal_on_all_processes(model: nn.Module) -> None:
    """Give every process the weights and buffers of the first: networks drawn apart would train apart, unseen."""
    if in_group():
        for tensor in (*model.parameters(), *model.buffers()):
            torch.distributed.broadcast(tensor.detach(), 0)


def statistics_of(model: nn.Module) -> list[nn.Module]:
    """The layers that keep running statistics (BatchNorm, InstanceNorm)."""
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase) and m.running_mean is not None]


@contextlib.contextmanager
def frozen_statistics(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Within the context training-mode passes normalize with the batch, and no running statistic moves.

    Idempotent (contexts nest), and `num_batches_tracked` keeps still, which `momentum = 0` would let advance.
    """
    saved = [(layer, layer.track_running_stats, dict(layer._buffers)) for layer in layers]
    try:
        for layer, _, buffers in saved:
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.track_running_stats = False  # in evaluation too, which a closure may end
            elif layer.training:  # InstanceNorm writes whatever buffers it finds
                layer._buffers.update(dict.fromkeys(buffers))
        yield
    finally:
        for layer, tracks, buffers in saved:
            layer.track_running_stats = tracks
            layer._buffers.update(buffers)


class TensorSlots:
    """Where a model keeps its tensors, so that others can be lent to it for a moment.

    Writing the modules' own dictionaries costs a hundredth of `torch.func.functional_call`. A tensor that several
    layers share is lent to all of them.
    """

    def __init__(self, model: nn.Module) -> None:
        names = {id(t): n for n, t in [*model.named_parameters(), *model.named_buffers()]}
        self._modules = list(model.modules())
        self._slots: list[tuple[dict[str, Any], str, str]] = [
            (slots, name, names[id(tensor)])
            for module in self._modules
            for slots in (module._parameters, module._buffers)
            for name, tensor in slots.items()
            if tensor is not None
        ]

    @contextlib.contextmanager
    def lent(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """Within the context the model computes with these tensors, by dotted name, in evaluation mode."""
        saved = [(slots, name, slots[name]) for slots, name, _ in self._slots]
        flags = [module.training for module in self._modules]
        try:
            for slots, name, full in self._slots:
                if full in tensors:
                    slots[name] = tensors[full]
            for module in self._modules:
                module.training = False
            yield
        finally:
            for slots, name, tensor in saved:
                slots[name] = tensor
            for module, flag in zip(self._modules, flags, strict=True):
                module.training = flag


def random_state(device: torch.device) -> dict[str, Tensor]:
    """State of torch's global streams, which dropout draws from: the CPU's and the training device's."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(device: torch.device, state: Mapping[str, Tensor]) -> None:
    """Put the global streams back into a state that `random_state` gave."""
    torch.set_rng_state(state["cpu"].cpu())
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
