"""Functions of a user's own, with and without weights, and objectives in place of a loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audit.aims.aim import CLASSES, Aim, Batch, Fields, Outputs, by_size, by_weight, classes

WEIGHTS = torch.tensor([1.0, 4.0, 0.25])


def mean_cross_entropy(outputs: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(outputs, target)


def focal(outputs: Tensor, target: Tensor) -> Tensor:
    chosen = outputs.log_softmax(1).gather(1, target.unsqueeze(1)).squeeze(1)
    return -((1 - chosen.exp()).square() * chosen).mean()


def class_weighted(outputs: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(outputs, target, weight=WEIGHTS.to(outputs))


def ignoring(outputs: Tensor, target: Tensor) -> Tensor:
    """The mean over targets that are not 0; 0 where there is none."""
    each = F.cross_entropy(outputs, target, reduction="none", ignore_index=0)
    return each.sum() / (target != 0).sum().clamp(min=1)


def ranking(outputs: Tensor, target: Tensor) -> Tensor:
    """The mean over pairs of examples."""
    score = outputs[:, 0].unsqueeze(1) - outputs[:, 0]
    order = (target.unsqueeze(1) > target).to(score.dtype)
    return (order * F.softplus(-score)).mean()


def root_mean_square(outputs: Tensor, target: Tensor) -> Tensor:
    return (F.one_hot(target, CLASSES).to(outputs) - outputs).square().mean().sqrt()


def hard_examples(outputs: Tensor, target: Tensor) -> Tensor:
    """The mean over the worse half of the examples."""
    each = F.cross_entropy(outputs, target, reduction="none")
    return each.topk((len(each) + 1) // 2).values.mean()


def with_spread(outputs: Tensor, target: Tensor) -> Tensor:
    """A variance over the batch, small."""
    return F.cross_entropy(outputs, target) + 1e-3 * outputs.var(0, correction=0).sum()


def by_position(outputs: Tensor, target: Tensor) -> Tensor:
    """Examples weigh by their position in the batch."""
    weights = torch.linspace(0.5, 1.5, len(target)).to(outputs)
    return (weights * F.cross_entropy(outputs, target, reduction="none")).mean()


def rare_class(outputs: Tensor, target: Tensor) -> Tensor:
    """Additive but for batches that hold the rarest class."""
    loss = F.cross_entropy(outputs, target)
    return loss * (1 + 0.5 * (target == 2).any().to(loss.dtype))


def each_example(outputs: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(outputs, target, reduction="none", label_smoothing=0.1)


class OwnModule(nn.Module):
    """A module of your own with a parameter in it that is no part of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.7))

    def forward(self, outputs: Tensor, target: Tensor) -> Tensor:
        return self.scale.detach() * F.cross_entropy(outputs, target)


class OwnCrossEntropy(nn.CrossEntropyLoss):
    """A subclass of torch's loss that computes something else."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return super().forward(input, target) + 0.1 * input.square().mean()


FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross-entropy in a function": mean_cross_entropy,
    "focal": focal,
    "class weights in a function": class_weighted,
    "ignoring in a function": ignoring,
    "ranking": ranking,
    "root mean square": root_mean_square,
    "hard examples": hard_examples,
    "spread of the batch": with_spread,
    "by position": by_position,
    "rarest class": rare_class,
}
_ADDITIVE = {"cross-entropy in a function", "focal"}


def _function(name: str) -> Callable[[Outputs], Aim]:
    function = FUNCTIONS[name]

    def aim(outputs: Outputs) -> Aim:
        loss = outputs.reading(function)
        return Aim({"loss": loss}, by_size(loss), classes, losses=name in _ADDITIVE and outputs.pick is None)

    return aim


def one_value(outputs: Outputs) -> Aim:
    loss = outputs.reading(each_example)
    return Aim({"loss": loss}, by_size(loss), classes, losses=True)


def own_module(outputs: Outputs) -> Aim:
    loss = outputs.reading(OwnModule().to(outputs.dtype))
    return Aim({"loss": loss}, by_size(loss), classes)


def subclass(outputs: Outputs) -> Aim:
    loss = outputs.reading(OwnCrossEntropy())
    return Aim({"loss": loss}, by_size(loss), classes)


# -- weights and objectives --------------------------------------------------------------------------------------------


def _target_of(item: Any) -> Tensor:
    return item["labels"] if isinstance(item, dict) else item[-1]


def class_sum(target: Tensor) -> float:
    return float(WEIGHTS[target].sum())


def odd(target: Tensor) -> float:
    """A weight that has nothing to do with the loss, 0 for some batches."""
    return float((target == 1).sum()) + (0.5 if bool((target == 0).any()) else 0.0)


def _weighed(loss: Any, weight: Callable[[Tensor], float]) -> Callable[[Outputs], Aim]:
    def aim(outputs: Outputs) -> Aim:
        read = loss if isinstance(loss, nn.CrossEntropyLoss) else outputs.reading(loss)
        return Aim(
            {"loss": read, "weight": lambda item: weight(_target_of(item))},
            by_weight(outputs.reading(loss), lambda b: weight(b.target)),
            _with_one,
            plain=True,
        )

    return aim


def _with_one(n: int, fields: Fields) -> Tensor:
    """Classes of which one at least is 1: no weight of `odd` is all zero."""
    targets = classes(n, fields)
    targets[0] = 1
    return targets


def _objective(loss: Any, weight: Callable[[Tensor], Any] | None) -> Callable[[Outputs], Aim]:
    def c(batch: Batch) -> float:
        return 1.0 if weight is None else float(weight(batch.target))

    def aim(outputs: Outputs) -> Aim:
        read = outputs.reading(loss)

        def compute(outputs: Any, target: Tensor) -> Any:
            value = read(outputs, target)
            return value if weight is None else (value, weight(target))

        return Aim({}, by_weight(read, c), _with_one, objective=compute, plain=True)

    return aim


PLAIN_AIMS: dict[str, Callable[[Outputs], Aim]] = {
    "class weights with weight=": _weighed(class_weighted, class_sum),
    "other weight=": _weighed(mean_cross_entropy, odd),
    "torch's loss with weight=": _weighed(nn.CrossEntropyLoss(), odd),
    "objective": _objective(mean_cross_entropy, None),
    "objective with sizes": _objective(mean_cross_entropy, lambda t: len(t)),
    "objective with class weights": _objective(class_weighted, lambda t: WEIGHTS[t].sum()),
    "objective over the batch": _objective(ranking, None),
    "objective with zero weights": _objective(hard_examples, odd),
}
CLASSES_AIMS: dict[str, Callable[[Outputs], Aim]] = {
    **{name: _function(name) for name in FUNCTIONS},
    "one value per example": one_value,
    "module of your own": own_module,
    "subclass of torch's": subclass,
    **PLAIN_AIMS,
}


# -- numbers and places ------------------------------------------------------------------------------------------------


def relative(outputs: Tensor, target: Tensor) -> Tensor:
    return ((outputs - target).square().sum() / target.square().sum().clamp(min=1e-6)).sqrt()


def quantile(outputs: Tensor, target: Tensor) -> Tensor:
    distance = target - outputs
    return torch.maximum(0.8 * distance, -0.2 * distance).mean()


def correlation(outputs: Tensor, target: Tensor) -> Tensor:
    return 1 - F.cosine_similarity(outputs.flatten(), target.flatten(), dim=0)


def squares(outputs: Tensor, target: Tensor) -> Tensor:
    return (outputs - target).square().flatten(1).mean(1)


def _values(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Outputs], Aim]:
    return lambda outputs: Aim(
        {"loss": loss}, by_size(loss), lambda n, fields: torch.randn(n, *outputs.shape), losses=loss is squares
    )


VALUES_AIMS = {
    "relative error": _values(relative),
    "quantile": _values(quantile),
    "correlation": _values(correlation),
    "one square an example": _values(squares),
}


def _places(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Outputs], Aim]:
    return lambda outputs: Aim(
        {"loss": loss}, by_size(loss), lambda n, fields: torch.randint(CLASSES, (n, *outputs.shape[1:]))
    )


PLACES_AIMS = {
    "ignoring places in a function": _places(ignoring),
    "class weights of places in a function": _places(class_weighted),
}


# -- what has to be refused --------------------------------------------------------------------------------------------


def _wrong(loss: Any, target: Callable[[int, Fields], Any]) -> Callable[[Outputs], Aim]:
    return lambda outputs: Aim({"loss": loss}, by_size(lambda o, t: o.mean()), target, refused="must")


WRONG = {
    "labels beyond the outputs": _wrong(nn.CrossEntropyLoss(), lambda n, fields: torch.full((n,), 7)),
    "reduction sum": _wrong(nn.CrossEntropyLoss(reduction="sum"), classes),
    "float targets for classes": _wrong(F.cross_entropy, lambda n, fields: torch.rand(n)),
    "numbers of another shape": _wrong(nn.MSELoss(), lambda n, fields: torch.randn(n)),
    "no scalar": _wrong(lambda o, t: o * 2.0, classes),
    "no tensor": _wrong(lambda o, t: float(F.cross_entropy(o, t)), classes),
    "everything ignored": _wrong(nn.CrossEntropyLoss(), lambda n, fields: torch.full((n,), -100)),
    "negative class weights": _wrong(nn.CrossEntropyLoss(weight=torch.tensor([1.0, -1.0, 1.0])), classes),
    "no loss": _wrong(None, classes),
    "error in the loss": _wrong(lambda o, t: F.cross_entropy(o[:, :, 0], t), classes),
}
