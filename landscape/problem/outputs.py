"""What a model returns: the tensor that stands for it, its own loss, and which examples it got right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from landscape.errors import InputError


def logits_in(outputs: Any) -> Tensor | None:
    """The outputs where they are a tensor, or their `.logits` (Hugging Face); None for anything else."""
    if isinstance(outputs, Tensor):
        return outputs
    logits = None if isinstance(outputs, tuple) else getattr(outputs, "logits", None)
    return logits if isinstance(logits, Tensor) else None


def logits_of(outputs: Any) -> Tensor:
    """The tensor that stands for the outputs: themselves, their logits or their first tensor.

    Raises:
        InputError: there is none.
    """
    logits = logits_in(outputs)
    if logits is not None:
        return logits
    parts: Any = ()
    if isinstance(outputs, Mapping):
        parts = [outputs["logits"], *outputs.values()] if "logits" in outputs else outputs.values()
    elif isinstance(outputs, list | tuple):
        parts = outputs
    first = next((p for p in parts if isinstance(p, Tensor)), None)
    if first is None:
        raise InputError(f"the model returned {type(outputs).__name__}: a tensor, or an object with .logits, is needed")
    return first


def own_loss(outputs: Any) -> Tensor:
    """The loss that a model returned: `.loss`, ["loss"], the one scalar of a tuple, or the output itself.

    Raises:
        InputError: there is none.
    """
    loss = getattr(outputs, "loss", None)
    if isinstance(outputs, Mapping):
        loss = outputs.get("loss")
    elif isinstance(outputs, Tensor):
        loss = outputs
    elif isinstance(outputs, list | tuple) and loss is None:
        scalars = [p for p in outputs if isinstance(p, Tensor) and p.dim() == 0 and p.is_floating_point()]
        loss = scalars[0] if len(scalars) == 1 else None
    if isinstance(loss, Tensor):
        return loss
    raise InputError(
        f"the model returned {_described(outputs)} without a loss: put the labels into the batch, or give Problem a "
        "loss"
    )


def example_hits(outputs: Any, target: Any) -> Tensor | None:
    """Whether each example is classified correctly: (size,) bool on the device; None where that has no meaning."""
    logits = logits_in(outputs)
    if logits is None or logits.dim() != 2 or logits.shape[1] < 2 or not isinstance(target, Tensor):
        return None
    classes = not target.is_floating_point() and target.shape == logits.shape[:1]
    return logits.argmax(dim=1) == target if classes else None


def class_counts(target: Tensor, ignored: int) -> Tensor:
    """Whether each class index is one: not `ignored`, which a network may well name, nor negative, which none names.

    A function of your own may ignore either without saying so.
    """
    return (target != ignored) & (target >= 0)


def count_hits(outputs: Any, target: Any, ignored: int) -> Tensor | None:
    """Number of examples whose class counts and is named right, 0-dim on the device; None where that has no meaning."""
    hits = example_hits(outputs, target)
    return None if hits is None else (hits & class_counts(target, ignored)).sum()


def _described(outputs: Any) -> str:
    kind = type(outputs).__name__
    if isinstance(outputs, Mapping):
        return f"{kind} with {', '.join(map(str, list(outputs)[:6]))}"
    return f"{kind} of {len(outputs)}" if isinstance(outputs, list | tuple) else kind
