"""Gradient accumulation outside the closure, of which a method would see the last micro-batch alone: it is refused.

Lightning's `accumulate_grad_batches` and loops of your own add gradients up in `.grad` before the step; Accelerate's
`accumulate` does not call the closure of the other micro-batches at all.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import FrameType

import torch
from torch import Tensor

from landscape.ball.spread import local
from landscape.ball.vectors import norm, norms
from landscape.errors import InputError

_INSTEAD = (
    "call optimizer.gradient(closure, share=1 / k, add=i > 0) for the micro-batches i = 0..k-1 and then "
    "optimizer.step(), or go over them within the closure"
)


class Leftovers:
    """Tells the gradients that the last step left in `.grad` from those that others have put there since."""

    def __init__(self) -> None:
        self._left: list[tuple[Tensor, int | None]] = []

    def keep(self, parameters: Sequence[Tensor], *, stepped: bool) -> None:
        """Remember what `.grad` holds. Before the optimizer's step it may still be clipped or unscaled in place."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        # What adds to a sharded gradient adds to its shard, and counts there.
        self._left = [(g, h._version if stepped else None) for g, h in zip(gradients, local(gradients), strict=True)]

    def forget(self) -> None:
        """Let the gradients go: they are cleared."""
        self._left = []

    def foreign(self, parameters: Sequence[Tensor]) -> Tensor | None:
        """The smallest parameter in whose `.grad` lies a gradient of someone else, not zero; None if there is none.

        The device is waited for, once, only where `.grad` holds what this optimizer has not left there.
        """
        known = {id(g): version for g, version in self._left}
        dense = [(p, p.grad) for p in parameters if p.grad is not None and p.grad.layout == torch.strided]
        parts = local([g for _, g in dense])
        others = [
            (p, g)
            for (p, g), part in zip(dense, parts, strict=True)
            if id(g) not in known or known[id(g)] not in (None, part._version)
        ]
        if not others:
            return None
        sizes = norms([g for _, g in others], torch.inf).tolist()
        nonzero = [p for (p, _), size in zip(others, sizes, strict=True) if size]
        return min(nonzero, key=Tensor.numel) if nonzero else None


def require_cleared(probe: Tensor, marker: Tensor, parameters: Sequence[Tensor], diverged: bool) -> None:
    """Raise InputError if the nan that was put into the probe's `.grad` before the closure's pass is still there.

    Args:
        probe: a parameter.
        marker: what was put into its `.grad`: all nan.
        parameters: all of them.
        diverged: whether the gradient of the pass itself may be nan, as its loss is or as float16 overflows.
    """
    if probe.grad is None or bool(norm([(~probe.grad.isnan()).double()])):
        return
    rest = [p.grad for p in parameters if p is not probe and p.grad is not None and p.grad.layout == torch.strided]
    # A closure that clips has spread the nan: then the marker itself is still there, and the loss is finite.
    spread = probe.grad is marker and not diverged
    if not rest or bool(norm(rest, torch.inf).isfinite()) or spread:
        raise InputError(
            "the gradients of earlier backward passes are in .grad and the closure does not clear them (gradient "
            f"accumulation, accumulate_grad_batches): the method would see the last micro-batch alone: {_INSTEAD}"
        )


def refuse_accelerate() -> None:
    """Raise InputError if Accelerate accumulates: it calls the closure of every k-th micro-batch alone.

    Its state is one for all optimizers of the process; between two steps of its own, any step is one too many.
    """
    module = sys.modules.get("accelerate.state")
    if module is None:
        return
    state = module.GradientState()
    steps = state.num_steps
    if steps > 1 and (not state.sync_gradients or _caller("accelerate.optimizer")):
        raise InputError(
            f"Accelerator(gradient_accumulation_steps={steps}) calls the closure of one micro-batch in {steps} and "
            f"divides its loss by {steps}: leave gradient_accumulation_steps at 1 and {_INSTEAD}"
        )


def refuse_unknown_scaler() -> None:
    """Raise InputError if a GradScaler at work steps an optimizer that was not told of it."""
    frame = _caller("torch.amp.grad_scaler")
    if frame is not None and frame.f_locals["self"].is_enabled():
        raise InputError(
            "a GradScaler takes the step and the method was not told of it, so that it has taken scaled gradients for "
            "the gradients: give MethodOptimizer scaler="
        )


def _caller(module: str) -> FrameType | None:
    """The nearest frame of a module among those that have called."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_globals.get("__name__") != module:
        frame = frame.f_back
    return frame
