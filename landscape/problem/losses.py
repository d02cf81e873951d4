"""Torch's losses: what each divides by, so that batches of any size and content add up to the whole.

A mean-reduced loss divides by something: the number of examples, of elements, of targets that are not ignored, or the
sum of their class weights. This is the weight c_b of the batch.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from landscape.errors import InputError

CLASSES, ELEMENTS, EXAMPLES = "classes", "elements", "examples"
_MODULES: dict[type[nn.Module], str] = {
    nn.CrossEntropyLoss: CLASSES,
    nn.NLLLoss: CLASSES,
    **dict.fromkeys(
        (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCELoss, nn.BCEWithLogitsLoss, nn.PoissonNLLLoss),
        ELEMENTS,
    ),
    **dict.fromkeys((nn.KLDivLoss, nn.SoftMarginLoss, nn.HingeEmbeddingLoss), ELEMENTS),
    **dict.fromkeys((nn.MultiMarginLoss, nn.MultiLabelMarginLoss, nn.MultiLabelSoftMarginLoss), EXAMPLES),
}
_FUNCTIONS: dict[Callable[..., Any], str] = {
    F.cross_entropy: CLASSES,
    F.nll_loss: CLASSES,
    **dict.fromkeys(
        (F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss, F.binary_cross_entropy, F.poisson_nll_loss), ELEMENTS
    ),
    **dict.fromkeys((F.binary_cross_entropy_with_logits, F.kl_div, F.soft_margin_loss), ELEMENTS),
    F.hinge_embedding_loss: ELEMENTS,
    **dict.fromkeys((F.multi_margin_loss, F.multilabel_margin_loss, F.multilabel_soft_margin_loss), EXAMPLES),
}


@dataclass(frozen=True)
class TorchLoss:
    """One of torch's losses.

    Attributes:
        function: as given.
        kind: "classes" (class indices or probabilities), "elements" or "examples": what the mean runs over.
        reduction: "mean", "none", "sum" or "batchmean".
        class_weights: of the classes; None is one each.
        ignore_index: the class index that does not count.
        each: the same loss without reduction.
    """

    function: Callable[..., Any]
    kind: str
    reduction: str
    class_weights: Tensor | None
    ignore_index: int
    each: Callable[..., Any]

    @property
    def of_logits(self) -> bool:
        """Whether it is cross-entropy of logits, not of log-probabilities."""
        function = self.function.func if isinstance(self.function, functools.partial) else self.function
        return function is F.cross_entropy or isinstance(function, nn.CrossEntropyLoss)

    @property
    def uneven(self) -> bool:
        """Whether examples of weight 0 add to the loss: label smoothing runs over all classes."""
        smoothing = getattr(self.each, "keywords", {}).get(
            "label_smoothing", getattr(self.each, "label_smoothing", 0.0)
        )
        return bool(smoothing) and self.class_weights is not None and not bool(self.class_weights.all())

    def denominator(self, target: Any) -> float:
        """What the mean over a batch with these targets divides by; 0 where none counts."""
        if not isinstance(target, Tensor):
            raise InputError(
                f"the targets are of type {type(target).__name__}: one of torch's losses needs a tensor; give a loss "
                "function that takes them"
            )
        if self.kind == EXAMPLES or self.reduction == "batchmean":
            return float(target.shape[0])
        if self.kind == ELEMENTS:
            return float(target.numel())
        if target.is_floating_point():  # probabilities of the classes, (n, C, ...)
            return target.numel() / target.shape[1] if target.dim() > 1 else 1.0
        counts = target != self.ignore_index
        if self.class_weights is None:
            return float(counts.sum())
        chosen = target[counts]
        if chosen.numel() and self.uneven and not bool(self.class_weights.to(target.device)[chosen].any()):
            raise InputError(
                "a batch holds only classes of weight 0, whose label smoothing is divided by 0: put other classes "
                "beside them, or give label_smoothing=0"
            )
        if chosen.numel() and not 0 <= int(chosen.min()) <= int(chosen.max()) < len(self.class_weights):
            raise InputError(
                f"targets from {int(chosen.min())} to {int(chosen.max())} do not fit the loss's "
                f"{len(self.class_weights)} class weights"
            )
        return float(self.class_weights.to(target.device).double()[chosen].sum())

    def example_weights(self, target: Tensor) -> Tensor:
        """What each example adds to the denominator of a loss of classes: (n,)."""
        if target.is_floating_point():
            return torch.full((len(target),), self.denominator(target) / len(target), device=target.device)
        counts = target != self.ignore_index
        if self.class_weights is None:
            each = counts.double()
        else:
            weights = self.class_weights.to(target.device).double()
            each = weights[target.clamp(min=0, max=len(weights) - 1)] * counts
        return each.flatten(1).sum(1) if each.dim() > 1 else each

    def contributing(self, target: Tensor) -> Tensor:
        """Whether each example adds to a loss of classes, (n,) bool: it has a label that counts, of a weight above 0.

        Label smoothing lets labels of weight 0 add to the loss too.
        """
        known = replace(self, class_weights=None) if self.uneven else self
        return known.example_weights(target) > 0

    def refuse_unfit(self, outputs: Tensor, target: Tensor) -> None:
        """Raise InputError where torch would warn, broadcast or return a constant 0: by shapes alone."""
        if self._fits(outputs, target):
            return
        shapes = f"outputs {tuple(outputs.shape)}, targets {tuple(target.shape)} of {target.dtype}"
        if self.kind == ELEMENTS:
            raise InputError(f"{shapes}: this loss compares element by element and needs equal shapes; reshape one")
        if target.is_floating_point():
            raise InputError(
                f"{shapes}: cross-entropy needs class indices (integers) of shape {_places(outputs)} or probabilities "
                "of the outputs' shape; for numbers give a loss such as mse"
            )
        if outputs.shape[1] == 1:
            raise InputError(
                f"{shapes}: the cross-entropy of a single class is 0 whatever the weights; give bce "
                "(binary_cross_entropy_with_logits) for two classes, mse for numbers"
            )
        raise InputError(f"{shapes}: class indices of shape {_places(outputs)} are needed")

    def _fits(self, outputs: Tensor, target: Tensor) -> bool:
        if self.kind == ELEMENTS:
            alike = outputs.shape == target.shape or outputs.numel() == target.numel() == 1
            return alike or self.function in (binary_cross_entropy, squared_error)
        if self.kind != CLASSES or outputs.dim() < 2:
            return True
        if target.is_floating_point():
            return outputs.shape == target.shape and outputs.shape[1] > 1
        return tuple(target.shape) == _places(outputs) and outputs.shape[1] > 1

    def refuse_labels(self, target: Tensor, classes: int) -> None:
        """Raise InputError for class indices beyond the outputs: on a GPU they would end the process."""
        if self.kind != CLASSES or target.is_floating_point():
            return
        counts = target[target != self.ignore_index]
        if counts.numel() and not 0 <= int(counts.min()) <= int(counts.max()) < classes:
            raise InputError(
                f"the labels go from {int(counts.min())} to {int(counts.max())}, the outputs have {classes} classes "
                f"(0 to {classes - 1}): check the labels, or set ignore_index"
            )

    def each_example(self, outputs: Tensor, target: Tensor) -> Tensor:
        """What each example adds to the sum that `denominator` divides: (n,)."""
        values = self.each(outputs, target)
        return values.flatten(1).sum(1) if values.dim() > 1 else values


def torch_loss(loss: Any) -> TorchLoss | None:
    """The loss as one of torch's (a module, a functional or a partial of one); None for any other.

    Raises:
        InputError: reduction='sum', or class weights that are negative or all zero.
    """
    function, keywords = loss, {}
    if isinstance(loss, functools.partial):
        if loss.args:
            return None
        function, keywords = loss.func, loss.keywords
    facts: Callable[[str, Any], Any]
    if isinstance(loss, nn.Module):
        base = next((m for m in type(loss).__mro__ if m in _MODULES), None)
        if base is None or type(loss).forward is not base.forward:
            return None
        kind, facts = _MODULES[base], functools.partial(getattr, loss)
        each = copy.copy(loss)
        each.reduction = "none"  # type: ignore[assignment]
    else:
        if not _hashable(function) or function not in _FUNCTIONS or {"size_average", "reduce"} & set(keywords):
            return None
        kind, facts = _FUNCTIONS[function], keywords.get
        each = functools.partial(function, **{**keywords, "reduction": "none"})  # type: ignore[assignment]
    reduction, weights = facts("reduction", "mean"), facts("weight", None) if kind == CLASSES else None
    if reduction == "sum":
        raise InputError("the loss has reduction='sum': a mean-reduced loss or one value per example is needed")
    if weights is not None and (bool((weights < 0).any()) or not bool(weights.any())):
        raise InputError(f"the loss's class weights {weights.tolist()} are negative or all zero: give positive ones")
    return TorchLoss(loss, kind, reduction, weights, facts("ignore_index", -100), each)


def binary_cross_entropy(outputs: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """Binary cross-entropy of logits; targets 0 and 1 of any dtype, (n,) fits (n, 1)."""
    return F.binary_cross_entropy_with_logits(outputs, _like(target, outputs), reduction=reduction)


def squared_error(outputs: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """Squared error; targets of any dtype, (n,) fits (n, 1)."""
    return F.mse_loss(outputs, _like(target, outputs), reduction=reduction)


_FUNCTIONS |= {binary_cross_entropy: ELEMENTS, squared_error: ELEMENTS}


NAMED: dict[str, Callable[..., Any] | None] = {
    "own": None,
    "cross-entropy": F.cross_entropy,
    "mse": squared_error,
    "bce": binary_cross_entropy,
    "nll": F.nll_loss,
}
"""Losses that have a name on the command line."""


def _like(target: Tensor, outputs: Tensor) -> Tensor:
    same = target.reshape(outputs.shape) if target.numel() == outputs.numel() == len(target) else target
    if same.shape != outputs.shape:
        raise InputError(f"outputs {tuple(outputs.shape)}, targets {tuple(target.shape)}: equal shapes are needed")
    return same.to(outputs.dtype)


def _places(outputs: Tensor) -> tuple[int, ...]:
    return (outputs.shape[0], *outputs.shape[2:])


def _hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True
