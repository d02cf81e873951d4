"""Fully connected networks."""

from __future__ import annotations

from math import prod

from torch import nn

from landscape.errors import InputError, unknown
from landscape.registry import register

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}


@register("table2-mlp", small={"input_shape": (2,)})
def table2_mlp(classes: int, input_shape: tuple[int, ...]) -> nn.Sequential:
    """Five linear layers of width 10, three ReLUs: the toy network of the ASAM report (Table II).

    Linear(d, 10), Linear(10, 10), ReLU, Linear(10, 10), ReLU, Linear(10, 10), ReLU, Linear(10, classes); no activation
    after the first layer, as printed there. 382 parameters for 2 features and 2 classes.
    Weights and biases uniform in +-1/sqrt(fan in), torch's default.
    """
    layers: list[nn.Module] = [nn.Linear(prod(input_shape), 10)]
    for _ in range(3):
        layers += [nn.Linear(10, 10), nn.ReLU()]
    return nn.Sequential(*_flatten(input_shape), *layers, nn.Linear(10, classes))


@register(
    "mlp",
    small={"input_shape": (5,), "hidden": (7, 6)},
    same_weights={"activation": ("relu", "tanh", "gelu")},
)
def mlp(
    classes: int,
    input_shape: tuple[int, ...],
    *,
    hidden: tuple[int, ...] = (100, 100),
    activation: str = "relu",
    batch_norm: bool = False,
) -> nn.Sequential:
    """Fully connected network of any widths.

    Linear, [BatchNorm], activation for every hidden layer, then Linear. Weights and biases uniform in +-1/sqrt(fan in),
    torch's default.

    Args:
        hidden: widths of the hidden layers, written 100x100 on the command line.
        activation: relu, tanh or gelu.
        batch_norm: put a BatchNorm after every hidden linear layer.
    """
    if not hidden or min(hidden) < 1:
        raise InputError(f"hidden={hidden}: at least one layer, each of at least one unit, is needed")
    if activation not in ACTIVATIONS:
        raise unknown("activation", activation, ACTIVATIONS)
    layers = _flatten(input_shape)
    width = prod(input_shape)
    for units in hidden:
        layers += [nn.Linear(width, units), *([nn.BatchNorm1d(units)] if batch_norm else []), ACTIVATIONS[activation]()]
        width = units
    return nn.Sequential(*layers, nn.Linear(width, classes))


def _flatten(input_shape: tuple[int, ...]) -> list[nn.Module]:
    return [nn.Flatten()] if len(input_shape) > 1 else []
