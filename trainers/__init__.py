"""Data, models, the training loop and one file per method.

>>> from trainers import METHODS, train
>>> train(METHODS["sam"](rho=0.05), data="digits", model="small-cnn", epochs=10, out="runs/sam")
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from landscape.registry import Registry

if TYPE_CHECKING:
    from trainers.loop.loop import Run, train
    from trainers.method.context import Context, Pass, Rows
    from trainers.method.method import Method
    from trainers.method.optimizer import MethodOptimizer
    from trainers.method.step import Step
    from trainers.method.task import Task

__all__ = ["METHODS", "Context", "Method", "MethodOptimizer", "Pass", "Rows", "Run", "Step", "Task", "train"]

METHODS: Registry[Callable[..., Method]] = Registry("trainers.methods", "method")

# Public name -> the module that defines it; imported when first used, so that --help does not wait for torch.
_HOMES = {
    "train": "loop.loop",
    "Run": "loop.loop",
    "Context": "method.context",
    "Method": "method.method",
    "MethodOptimizer": "method.optimizer",
    "Pass": "method.context",
    "Rows": "method.context",
    "Step": "method.step",
    "Task": "method.task",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"trainers.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'trainers' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
