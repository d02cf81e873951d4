"""Loggers as loops have them: TensorBoard, Weights & Biases, Accelerate, Lightning, or any function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from landscape.errors import InputError

Log = Callable[[Mapping[str, float], int], Any]
PREFIX = "landscape/"


def log_of(logger: Any) -> Log:
    """What hands (values by name, step) to a logger.

    Args:
        logger: a `SummaryWriter` (`add_scalar`), a logger of Lightning (`log_metrics`), a run of Weights & Biases or an
            `Accelerator` (`log(values, step=)`), or a function of (values, step); None logs nothing.

    Raises:
        InputError: anything else.
    """
    if logger is None:
        return lambda values, step: None
    if hasattr(logger, "add_scalar"):
        return lambda values, step: [logger.add_scalar(name, value, step) for name, value in values.items()]
    if hasattr(logger, "log_metrics"):
        return lambda values, step: logger.log_metrics(dict(values), step)
    if hasattr(logger, "log"):
        return lambda values, step: logger.log(dict(values), step=step)
    if callable(logger):
        return logger
    raise InputError(
        f"log is a {type(logger).__name__}: a SummaryWriter, a run of Weights & Biases, an Accelerator, a logger of "
        "Lightning or a function of (values, step) is needed"
    )


def logged(row: Mapping[str, Any]) -> dict[str, float]:
    """What a logger gets of a row: everything but the step, under one prefix."""
    return {f"{PREFIX}{name}": value for name, value in row.items() if name != "step"}
