"""Data, models, the training loop and one file per method.

>>> from trainers import METHODS, train
>>> train(METHODS["sam"](rho=0.05), data="digits", model="small-cnn", epochs=10, out="runs/sam")
"""

from __future__ import annotations

import importlib
from typing import Any

from landscape.registry import Registry

METHODS = Registry("trainers.methods", "method")

# Public name -> the module that defines it; imported when first used, so that --help does not wait for torch.
_HOMES = {
    "train": "loop.loop",
    "Run": "loop.loop",
    "Context": "method.method",
    "Method": "method.method",
    "MethodOptimizer": "method.optimizer",
    "Pass": "method.method",
    "Rows": "method.method",
    "Step": "method.method",
    "Task": "method.method",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"trainers.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'trainers' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(["METHODS", *_HOMES])
