"""What a model returns: the tensor that a loss compares, and which examples it got right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from landscape.errors import InputError


def logits_of(outputs: Any) -> Tensor:
    """The tensor that a loss compares: the output itself, its `.logits` (Hugging Face) or its first entry."""
    found = outputs
    if isinstance(outputs, Mapping) and "logits" in outputs:
        found = outputs["logits"]
    elif hasattr(outputs, "logits"):
        found = outputs.logits
    elif isinstance(outputs, list | tuple) and outputs:
        found = outputs[0]
    if isinstance(found, Tensor):
        return found
    raise InputError(f"the model returned {type(outputs).__name__}: a tensor, or an object with .logits, is needed")


def example_hits(outputs: Any, target: Any) -> Tensor | None:
    """Whether each example is classified correctly: (size,) bool on the device; None where that has no meaning."""
    logits = logits_of(outputs)
    classes = isinstance(target, Tensor) and not target.is_floating_point() and target.shape == logits.shape[:1]
    return logits.argmax(dim=1) == target if classes and logits.dim() == 2 else None


def count_hits(outputs: Any, target: Any) -> Tensor | None:
    """Number of examples classified correctly, 0-dim on the device; None where that has no meaning."""
    hits = example_hits(outputs, target)
    return None if hits is None else hits.sum()
