"""Loss-landscape analysis: sharpness, curvature and surfaces of a network around its weights.

>>> problem = landscape.Problem(model, loss, batches)
>>> landscape.sam_sharpness(problem, rho=0.05).value

Names are imported when they are first used, so that the command line answers before torch is loaded.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from landscape.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable

__version__ = "0.2.0.dev0"

MEASURES: Registry[Callable[..., Any]] = Registry("landscape.measures", "measure")

# Public name -> the module that defines it. Measures need no line here: see `homes`.
_HOMES = {
    "AsymmetryWarning": "errors",
    "CheckpointWarning": "errors",
    "InputError": "errors",
    "InputWarning": "errors",
    "Invariance": "invariance.result",
    "LabelledArrays": "results.result",
    "LossPath": "surfaces.paths",
    "NonDeterministicWarning": "errors",
    "Parameters": "problem.parameters",
    "Persistence": "surfaces.persistence",
    "Problem": "problem.problem",
    "Profiles": "surfaces.profiles",
    "Result": "results.result",
    "Scaling": "ball.scaling",
    "Sharpness": "sharpness.sharpness",
    "Surface": "surfaces.result",
    "align": "surfaces.alignment",
    "compare_surfaces": "surfaces.comparison",
    "hessian_diagonal": "curvature.exact.diagonals",
    "keep_freed_memory": "allocator",
    "load": "results.hdf5",
    "path": "surfaces.paths",
    "persistence": "surfaces.persistence",
    "profiles": "surfaces.profiles",
    "rescaling": "invariance",
    "rescaling_invariance": "invariance.invariance",
    "save": "results.hdf5",
    "surface": "surfaces.surface",
}


# Names that the floor above defines, since they read checkpoints of its trainings and its data, or watch a training;
# nothing in `landscape` uses them.
_UPSTAIRS = {"Monitor": "trainers.monitor.monitor", "problem_from": "trainers.rebuild"}


@functools.cache
def homes() -> dict[str, str]:
    """Public name -> the module that defines it; measures are found by reading their files."""
    measures = {e.symbol: f"measures.{e.file.stem}" for e in MEASURES.entries.values()}
    ours = {name: f"landscape.{home}" for name, home in {**_HOMES, **measures}.items()}
    return dict(sorted({**ours, **_UPSTAIRS}.items()))


def import_all() -> None:
    """Import every module that defines a result type, so that `load` knows them."""
    for home in set(homes().values()) - set(_UPSTAIRS.values()):
        importlib.import_module(home)


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return ["MEASURES", *homes()]
    if home := homes().get(name):
        return getattr(__import__(home, fromlist=[name]), name)  # `from home import name`
    if not name.startswith("_") and importlib.util.find_spec(f"landscape.{name}"):
        return importlib.import_module(f"landscape.{name}")
    raise AttributeError(f"module 'landscape' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(["MEASURES", *homes()])
