"""Loss-landscape analysis: sharpness, curvature and surfaces of a network around its weights.

>>> problem = landscape.Problem(model, loss, batches)
>>> landscape.sam_sharpness(problem, rho=0.05).value

Names are imported when they are first used, so that the command line answers before torch is loaded.
"""

from __future__ import annotations

import importlib
from typing import Any

from landscape.registry import Registry

__version__ = "0.2.0.dev0"

MEASURES: Registry[Any] = Registry("landscape.measures", "measure")

# Public name -> the module that defines it.
_HOMES = {
    "Problem": "problem.problem",
    "Parameters": "problem.parameters",
    "Scaling": "ball.scaling",
    "Sharpness": "sharpness.sharpness",
    "InputError": "errors",
    "AsymmetryWarning": "errors",
    "NonDeterministicWarning": "errors",
    "Result": "results.result",
    "LabelledArrays": "results.result",
    "load": "results.hdf5",
    "save": "results.hdf5",
    "surface": "surfaces.surface",
    "compare_surfaces": "surfaces.sets",
    "path": "surfaces.paths",
    "LossPath": "surfaces.paths",
    "align": "surfaces.alignment",
    "profiles": "surfaces.sets",
    "Profiles": "surfaces.sets",
    "Surface": "surfaces.result",
    "rescaling_invariance": "invariance.invariance",
    "Invariance": "invariance.invariance",
    "top_eigenvalues": "measures.hessian_top_eigenvalues",
    "trace": "measures.hessian_trace",
    "extreme_eigenvalues": "measures.negative_curvature",
    "hessian_diagonal": "curvature.exact.diagonals",
}
# Modules that are part of the public surface.
_MODULES = {
    **{name: name for name in ("checkpoint", "errors", "measures", "progress", "random", "results", "surfaces")},
    "rescaling": "invariance.rescaling",
}


def import_all() -> None:
    """Import every module that defines a result type, so that `load` knows them."""
    for home in set(_HOMES.values()):
        importlib.import_module(f"landscape.{home}")
    for name in MEASURES:
        MEASURES[name]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"landscape.{_HOMES[name]}"), name)
    if name in MEASURES:
        return MEASURES[name]
    if name in _MODULES:
        return importlib.import_module(f"landscape.{_MODULES[name]}")
    raise AttributeError(f"module 'landscape' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*_HOMES, *MEASURES, *_MODULES, "MEASURES"])
