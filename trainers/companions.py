"""What some measures take beside the Problem: the training's optimizer, and a second loss."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from landscape import MEASURES
from landscape.errors import InputError
from trainers.requests import MeasureRequest

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from landscape.problem.problem import Problem


@dataclass(frozen=True)
class Companions:
    """What stands beside a Problem, brought when a measure takes it: as an argument of that name, or as direction.

    Attributes:
        optimizer: of the training.
        other: the loss of other data.
    """

    optimizer: Callable[[], Optimizer] | None = None
    other: Callable[[], Problem] | None = None

    def arguments(self, request: MeasureRequest) -> dict[str, Any]:
        """The arguments of a request with what the measure takes beside them.

        Raises:
            InputError: something that is not there.
        """
        arguments = dict(request.arguments)
        for argument, name in _taken(request).items():
            if (bring := getattr(self, name, None)) is None:
                raise _missing(request, name)
            arguments[argument] = bring()
        return arguments

    def require(self, request: MeasureRequest) -> None:
        """Raise InputError where a measure takes something that is not there."""
        for name in _taken(request).values():
            if getattr(self, name, None) is None:
                raise _missing(request, name)

    def facts(self, request: MeasureRequest) -> dict[str, Any]:
        """What of it decides the measure's value, beside the checkpoint; plain values."""
        if "other" not in _taken(request).values() or self.other is None:
            return {}
        other = self.other()
        return {"other_sample_sha256": other.batches.fingerprint(), "other_loss": other.loss_name}


NOTHING_BESIDE: Companions = Companions()


def _taken(request: MeasureRequest) -> dict[str, str]:
    """Argument of the measure -> name of what it takes beside the Problem; none for a surface."""
    if request.measure not in MEASURES:
        return {}
    _, *rest = inspect.signature(MEASURES[request.measure]).parameters.values()
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    beside = [f.name for f in fields(Companions)]
    taken = {p.name: p.name for p in rest if (p.name in beside or p.default is p.empty) and p.kind not in kinds}
    if request.arguments.get("direction") == "optimizer":
        taken["direction"] = "optimizer"
    return taken


def _missing(request: MeasureRequest, name: str) -> InputError:
    hint = {
        "optimizer": "a Monitor takes it as optimizer=, a checkpoint of this toolkit's training holds it",
        "other": "a Monitor takes it as other=, `landscape analyze` as --other-data",
    }.get(name, "leave it out here")
    return InputError(
        f"{request.measure} needs {name} beside the weights of one step: {hint}; in Python call "
        f"landscape.{MEASURES.entry(request.measure).symbol} on checkpoints"
    )
