"""The built-in networks: ``build_model("resnet20", classes=10, input_shape=(3, 32, 32), seed=0)``.

One file per family, found by reading the files (see :mod:`landscape.registry`), so that listing them imports no torch.
A network is rebuilt from its name and its arguments, which are plain values; it records nothing itself. Every network
is made of ``nn.Module`` layers only, each activation an instance of its own, so that hooks and ``torch.fx`` see them.

A model is ``@register("name", small={"input_shape": ..., option: ...}) def name(classes, input_shape, *, options)``;
``small`` is a configuration of seconds, which the contract tests build. ``same_weights={option: values}`` names the
options that change the function and leave the names and shapes of the weights: a file of weights does not show them.
``reads="tokens"`` says that inputs are token ids instead of numbers, ``predicts="next tokens"`` that outputs are logits
(n, classes, length), one column per token, instead of (n, classes).
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from landscape.errors import InputError
from landscape.registry import Registry
from trainers.default_dtype import float32_by_default
from trainers.names import checked_arguments, parse_name

if TYPE_CHECKING:
    from torch import nn

    from trainers.datasets import Data

_INPUT_SHAPES = ((1, 28, 28), (3, 32, 32), (3, 224, 224))
"""Of the data that are most likely, the one whose refusal says most last."""

MODELS: Registry[Callable[..., nn.Module]] = Registry("trainers.models", "model")


def build_model(
    name: str, *, classes: int, input_shape: Sequence[int], seed: int | None = None, copies: int = 1, **arguments: Any
) -> nn.Module:
    """A freshly initialized network on the CPU in float32, in training mode.

    Args:
        name: one of ``MODELS``.
        classes: width of the output.
        input_shape: shape of one input: (features,), (tokens,) or (channels, height, width).
        seed: seed of the initialization; None is 0. The global random stream is neither read nor moved.
        copies: of the weights that will be held at least: their gradient in training, the optimizer's momentum.
        arguments: the network's own options, see its docstring.

    Raises:
        InputError: for an unknown name or argument, a shape that the network cannot take, or copies that do not fit in
            the machine's memory.
    """
    import torch

    from trainers.sketch import sketching

    options = checked_arguments(MODELS.entry(name), arguments)
    classes, shape = _checked_shape(classes, input_shape)
    with torch.random.fork_rng(devices=[]), float32_by_default():
        # A network that looks at its weights while it is built has no sketch.
        with sketching(), contextlib.suppress(RuntimeError):
            _require_memory(name, MODELS[name](classes, shape, **options), copies)
        torch.manual_seed(0 if seed is None else seed)
        return MODELS[name](classes, shape, **options)


def _checked_shape(classes: Any, input_shape: Any) -> tuple[int, tuple[int, ...]]:
    try:
        count, shape = operator.index(classes), tuple(map(operator.index, input_shape))
    except TypeError as error:
        raise InputError(
            f"classes={classes!r}, input_shape={input_shape!r}: whole numbers are needed, as in classes=10 and "
            "input_shape=3x32x32 or (2,)"
        ) from error
    if len(shape) not in (1, 3) or min(shape) < 1:
        raise InputError(f"input shape {shape} is neither (features,) nor (channels, height, width)")
    if count < 1:
        raise InputError(f"classes={count}: at least one output is needed")
    return count, shape


def arguments_for(name: str, data: Data) -> dict[str, Any]:
    """What a network is made with to fit the data: `classes`, `input_shape`, and of tokens their number.

    Raises:
        InputError: an unknown name, or a network of other inputs or outputs; says which would do.
    """
    entry = MODELS.entry(name)
    if kind_of(name) != data.kind:
        fit = ", ".join(other for other in MODELS if kind_of(other) == data.kind)
        reads, predicts = kind_of(name)
        raise InputError(
            f"{name} reads {reads} and predicts {predicts}, {data.name} holds {data.kind[0]} and {data.kind[1]}: "
            f"choose --model {fit}"
        )
    arguments = {"classes": data.classes, "input_shape": data.input_shape, "vocabulary": data.vocabulary}
    return {k: v for k, v in arguments.items() if k != "vocabulary" or any(o.name == k for o in entry.options)}


def kind_of(name: str) -> tuple[str, str]:
    """What a network reads and what it predicts, see `trainers.datasets.Data.kind`."""
    facts = MODELS.entry(name).facts
    return facts.get("reads", "numbers"), facts.get("predicts", "class")


def require_buildable(text: str) -> None:
    """Refuse a network that no data make right, as far as that can be said without any.

    Args:
        text: NAME[:key=value,...].

    Raises:
        InputError: an unknown name or argument, one of another type, or a value with which no input can be taken.
    """
    import torch

    from trainers.sketch import sketching

    name, arguments = parse_name(text)
    entry = MODELS.entry(name)
    facts = entry.facts.get("small", {})
    small = facts.get("input_shape", (2,))
    if "vocabulary" in facts:  # the data say it
        arguments = {"vocabulary": facts["vocabulary"], **arguments}
    shapes = [arguments.pop("input_shape")] if "input_shape" in arguments else [small, *_INPUT_SHAPES]
    classes, _ = _checked_shape(arguments.pop("classes", 10), shapes[0])
    options, error = checked_arguments(entry, arguments), None
    with torch.random.fork_rng(devices=[]), sketching():
        for shape in shapes:
            try:
                MODELS[name](classes, shape, **options)
            except InputError as refused:
                error = refused
            except Exception:  # a network that looks at its weights has no sketch
                return
            else:
                return
    assert error is not None
    raise error


def _require_memory(name: str, sketch: nn.Module, copies: int) -> None:
    """Raise InputError where the copies of the network do not fit; of `sketch`, shapes alone are there."""
    import torch

    from landscape.problem.memory import free_memory, size

    count = sum(p.numel() for p in sketch.parameters())
    needed, free = 4.0 * count * copies, free_memory(torch.device("cpu"))
    if needed > free:
        raise InputError(
            f"{name} has {count:,} weights: {size(needed)} of memory for {copies} float32 copies of them, {size(free)} "
            "are free; take a smaller network"
        )


def count_parameters(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def require_images(name: str, input_shape: tuple[int, ...], smallest: int) -> None:
    """Raise InputError unless the input is an image of at least `smallest` pixels per side."""
    if len(input_shape) != 3 or min(input_shape[1:]) < smallest:
        raise InputError(
            f"{name} takes images (channels, height, width) of at least {smallest} pixels per side, not {input_shape}: "
            "choose mlp for plain features"
        )
