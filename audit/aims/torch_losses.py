"""Torch's losses as modules, functionals and partials: L is their value on all examples at once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audit.aims.aim import CLASSES, Aim, Fields, Outputs, at_once, classes


def chance(probability: float) -> bool:
    """A coin."""
    return bool(torch.rand(()) < probability)


def one_of(values: Any) -> Any:
    """One of them."""
    return values[int(torch.randint(len(values), ()))]


def _spelled(module: type[nn.Module], function: Callable[..., Tensor], options: dict[str, Any]) -> Any:
    """The loss as somebody would write it."""
    how = one_of(["module", "partial", "functional"])
    if how == "functional" and not options:
        return function
    if how == "partial":
        return functools.partial(function, **options)
    loss = module(**options)
    return torch.compile(loss, backend="eager") if chance(0.1) else loss


def _class_weights(outputs: Outputs) -> Tensor:
    """One class in some draws of weight 0, never class 1."""
    weights = torch.rand(CLASSES) * 4 + 0.1
    if chance(0.3):
        weights[one_of([0, *range(2, CLASSES)])] = 0.0
    return weights.to(outputs.dtype)


def _aim(
    outputs: Outputs, module: type[nn.Module], function: Any, options: dict[str, Any], target: Any, **facts: Any
) -> Aim:
    loss = _spelled(module, function, options)
    counts = [functools.partial(_has_weight, options)] if "ignored" in facts else []
    return Aim({"loss": loss}, at_once(functools.partial(function, **options), outputs.pick, *counts), target, **facts)


def _has_weight(options: dict[str, Any], target: Tensor) -> bool:
    """Whether a class index is neither ignored nor of weight 0; a mean of the single values counts all."""
    kept = target[target != options.get("ignore_index", -100)]
    if options.get("reduction") == "none":
        return True
    if "weight" not in options or "label_smoothing" in options:
        return kept.numel() > 0
    return bool(options["weight"][kept].any())


def _options(outputs: Outputs, smoothing: bool = True, ignore: bool = True) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if chance(0.4):
        options["weight"] = _class_weights(outputs)
    if ignore and chance(0.5):
        options["ignore_index"] = one_of([-100, -1, 0, 2])
    if smoothing and chance(0.3):
        options["label_smoothing"] = 0.2
    return options


def _classes(outputs: Outputs) -> Callable[[int, Fields], Tensor]:
    """A class index an example, or one a place."""
    places = outputs.shape[1:]
    return lambda n, fields: classes(n * torch.Size(places).numel(), fields).view(n, *places)


def _counting(
    target: Callable[[int, Fields], Tensor], ignored: int, share: float = 0.2
) -> Callable[[int, Fields], Tensor]:
    """A share of the targets are ignored; the first is 1, a class that counts: there is an L."""

    def draw(n: int, fields: Fields) -> Tensor:
        targets = target(n, fields)
        targets[torch.rand(targets.shape) < share] = ignored
        targets.view(-1)[0] = 1
        return targets

    return draw


def cross_entropy(outputs: Outputs) -> Aim:
    options = _options(outputs)
    if chance(0.15) and not outputs.shape[1:]:
        options["reduction"] = "none"
    ignored = options.get("ignore_index", -100)
    drawn = _classes(outputs)
    target = _counting(drawn, ignored, 0.2 if "ignore_index" in options or chance(0.5) else 0.0)
    return _aim(outputs, nn.CrossEntropyLoss, F.cross_entropy, options, target, ignored=ignored, losses=True)


def probabilities(outputs: Outputs) -> Aim:
    return _aim(
        outputs,
        nn.CrossEntropyLoss,
        F.cross_entropy,
        _options(outputs, ignore=False),
        lambda n, fields: torch.randn(n, *outputs.shape).softmax(1),
        losses=True,
    )


def nll(outputs: Outputs) -> Aim:
    options = _options(outputs, smoothing=False)
    ignored = options.get("ignore_index", -100)
    target = _counting(_classes(outputs), ignored)
    return _aim(outputs, nn.NLLLoss, F.nll_loss, options, target, ignored=ignored, losses=True)


def multi_margin(outputs: Outputs) -> Aim:
    options = {"p": one_of([1, 2]), "margin": 0.7} if chance(0.7) else {}
    if chance(0.5):
        options["weight"] = _class_weights(outputs)
    return _aim(outputs, nn.MultiMarginLoss, F.multi_margin_loss, options, classes, losses=True, curved=False)


def multilabel_soft_margin(outputs: Outputs) -> Aim:
    options = {"weight": _class_weights(outputs)} if chance(0.5) else {}
    return _aim(
        outputs,
        nn.MultiLabelSoftMarginLoss,
        F.multilabel_soft_margin_loss,
        options,
        lambda n, fields: torch.randint(2, (n, CLASSES)).float(),
        losses=True,
    )


def multilabel_margin(outputs: Outputs) -> Aim:
    def target(n: int, fields: Fields) -> Tensor:
        targets = torch.stack([torch.randperm(CLASSES) for _ in range(n)])
        targets[:, 2] = -1
        return targets

    return _aim(outputs, nn.MultiLabelMarginLoss, F.multilabel_margin_loss, {}, target, losses=True, curved=False)


# -- element by element ------------------------------------------------------------------------------------------------


def _normal(outputs: Outputs) -> Callable[[int, Fields], Tensor]:
    return lambda n, fields: torch.randn(n, *outputs.shape)


def _zero_one(outputs: Outputs) -> Callable[[int, Fields], Tensor]:
    return lambda n, fields: torch.randint(2, (n, *outputs.shape)).float()


def _signs(outputs: Outputs) -> Callable[[int, Fields], Tensor]:
    return lambda n, fields: torch.randint(2, (n, *outputs.shape)).float() * 2 - 1


def _counts(outputs: Outputs) -> Callable[[int, Fields], Tensor]:
    return lambda n, fields: torch.randint(4, (n, *outputs.shape)).float()


def _elements(
    module: type[nn.Module],
    function: Any,
    options: Callable[[Outputs], dict[str, Any]],
    target: Callable[[Outputs], Callable[[int, Fields], Tensor]],
) -> Callable[[Outputs], Aim]:
    def aim(outputs: Outputs) -> Aim:
        chosen = options(outputs) if chance(0.7) else {}
        none = chance(0.1)
        if none:
            chosen["reduction"] = "none"
        return _aim(
            outputs, module, function, chosen, target(outputs), losses=not none, refused="may" if none else None
        )

    return aim


def _bce_options(outputs: Outputs) -> dict[str, Any]:
    weights = {name: torch.rand(outputs.shape) + 0.2 for name in ("weight", "pos_weight") if chance(0.6)}
    return {name: weight.to(outputs.dtype) for name, weight in weights.items()}


ELEMENTS_AIMS = {
    "mse": _elements(nn.MSELoss, F.mse_loss, lambda s: {}, _normal),
    "l1": _elements(nn.L1Loss, F.l1_loss, lambda s: {}, _normal),
    "smooth l1": _elements(nn.SmoothL1Loss, F.smooth_l1_loss, lambda s: {"beta": 0.5}, _normal),
    "huber": _elements(nn.HuberLoss, F.huber_loss, lambda s: {"delta": 0.5}, _normal),
    "bce of logits": _elements(nn.BCEWithLogitsLoss, F.binary_cross_entropy_with_logits, _bce_options, _zero_one),
    "poisson": _elements(
        nn.PoissonNLLLoss, F.poisson_nll_loss, lambda s: {"log_input": True, "full": one_of([True, False])}, _counts
    ),
    "soft margin": _elements(nn.SoftMarginLoss, F.soft_margin_loss, lambda s: {}, _signs),
    "hinge embedding": _elements(nn.HingeEmbeddingLoss, F.hinge_embedding_loss, lambda s: {"margin": 0.5}, _signs),
}


def kl_div(outputs: Outputs) -> Aim:
    options = {"reduction": one_of(["batchmean", "mean"]), "log_target": one_of([True, False])}

    def target(n: int, fields: Fields) -> Tensor:
        targets = torch.randn(n, *outputs.shape).log_softmax(1)
        return targets if options["log_target"] else targets.exp()

    return _aim(outputs, nn.KLDivLoss, F.kl_div, options, target, losses=True)


CLASSES_AIMS = {
    "cross-entropy": cross_entropy,
    "cross-entropy of probabilities": probabilities,
    "nll": nll,
    "multi margin": multi_margin,
    "multilabel soft margin": multilabel_soft_margin,
    "multilabel margin": multilabel_margin,
    "kl": kl_div,
}


PLACES_AIMS = {
    "cross-entropy of places": cross_entropy,
    "nll of places": nll,
    "cross-entropy of probabilities of places": probabilities,
    "mse of places": _elements(nn.MSELoss, F.mse_loss, lambda s: {}, _normal),
    "bce of places": _elements(nn.BCEWithLogitsLoss, F.binary_cross_entropy_with_logits, lambda s: {}, _zero_one),
}
