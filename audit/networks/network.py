"""What a draw needs to know of a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from audit.aims.aim import CLASSES, Aim, Fields, Outputs

__all__ = ["CLASSES", "FORMS", "Fields", "Network", "features", "padded", "tokens"]


def as_tuple(fields: Fields, target: Any) -> Any:
    """(inputs..., target)."""
    return (*fields.values(), target)


def as_nested(fields: Fields, target: Any) -> Any:
    """((inputs...), target)."""
    return tuple(fields.values()), target


def as_list(fields: Fields, target: Any) -> Any:
    """[inputs..., target], as the default collate function gives them."""
    return [*fields.values(), target]


def as_dict(fields: Fields, target: Any) -> Any:
    """Inputs by the names of forward's arguments, the target as "labels"."""
    return {**fields, "labels": target}


def as_keywords(fields: Fields, target: Any) -> Any:
    """({inputs by name}, target)."""
    return dict(fields), target


FORMS: dict[str, Callable[[Fields, Any], Any]] = {
    "tuple": as_tuple,
    "nested": as_nested,
    "list": as_list,
    "dict": as_dict,
    "keywords": as_keywords,
}


@dataclass
class Network:
    """A network and the examples that it takes.

    Attributes:
        model: float64, with the weights at which it is looked at.
        draw: n examples: every input by the name of forward's argument, the examples first.
        outputs: what the objective finds: "classes" (n, 3), "values" (n, k), "places" (n, 3, t), or "special" (only
            `aims` fit).
        pick: the tensor in outputs that are none, where there is one.
        call: the model's outputs on a batch of inputs and targets.
        form: how a loader would give a batch; None for any of FORMS.
        aims: what fits this network alone, beside what fits its outputs.
        sliceable: whether landscape could divide a batch.
        second: whether automatic differentiation gives the right second derivative (else differences of gradients).
        curved: whether torch has a second derivative at all; curvature may be refused else.
        coupled: whether the outputs of an example depend on the others of its batch.
        ragged: names of fields that are cut to the longest example of a batch, by the mask of that name.
        part: a pattern of parameters that make sense alone.
        loose: whether landscape casts the data to the model's dtype.
        refusable: landscape may refuse it.
        mixed: keeps its own dtypes; held to a loose bar.
    """

    model: nn.Module
    draw: Callable[[int], Fields]
    outputs: str = "classes"
    pick: Callable[[Any], Tensor] | None = None
    call: Callable[[nn.Module, Fields, Any], Any] = lambda model, fields, target: model(*fields.values())
    form: Callable[[Fields, Any], Any] | None = None
    aims: Mapping[str, Callable[[Outputs], Aim]] = field(default_factory=dict)
    sliceable: bool = True
    second: bool = True
    curved: bool = True
    coupled: bool = False
    ragged: str | None = None
    part: str | None = None
    loose: bool = True
    refusable: bool = False
    mixed: bool = False


def features(size: int) -> Callable[[int], Fields]:
    """Examples of `size` numbers."""
    return lambda n: {"x": torch.randn(n, size)}


def tokens(vocabulary: int, length: int) -> Callable[[int], Fields]:
    """Sequences of ids."""
    return lambda n: {"ids": torch.randint(vocabulary, (n, length))}


def padded(width: int, length: int) -> Callable[[int], Fields]:
    """Sequences of vectors with a mask that is True where there is nothing, after at least one place."""

    def draw(n: int) -> Fields:
        lengths = torch.randint(1, length + 1, (n, 1))
        mask = torch.arange(length) >= lengths
        return {"x": torch.randn(n, length, width).masked_fill(mask.unsqueeze(2), 0.0), "mask": mask}

    return draw
