"""Made by `make docs` from landscape/__init__.py and the measures: what type checkers and editors read."""

from collections.abc import Callable
from typing import Any

from landscape import allocator as allocator
from landscape import archive as archive
from landscape import ball as ball
from landscape import checkpoint as checkpoint
from landscape import curvature as curvature
from landscape import errors as errors
from landscape import files as files
from landscape import formatting as formatting
from landscape import invariance as invariance
from landscape import langevin as langevin
from landscape import locks as locks
from landscape import machine as machine
from landscape import meaning as meaning
from landscape import measure as measure
from landscape import measures as measures
from landscape import notebook as notebook
from landscape import problem as problem
from landscape import processes as processes
from landscape import progress as progress
from landscape import random as random
from landscape import registry as registry
from landscape import results as results
from landscape import self_test as self_test
from landscape import shards as shards
from landscape import shared_rows as shared_rows
from landscape import sharpness as sharpness
from landscape import statistics as statistics
from landscape import surfaces as surfaces
from landscape.allocator import keep_freed_memory
from landscape.ball.scaling import Scaling
from landscape.curvature.exact.diagonals import hessian_diagonal
from landscape.errors import AsymmetryWarning, CheckpointWarning, InputError, InputWarning, NonDeterministicWarning
from landscape.invariance import rescaling
from landscape.invariance.invariance import rescaling_invariance
from landscape.invariance.result import Invariance
from landscape.measures.adaptive_hessian import adaptive_top_eigenvalues
from landscape.measures.adaptive_sharpness import adaptive_sharpness
from landscape.measures.average_sharpness import average_sharpness
from landscape.measures.basin_radius import basin_radius
from landscape.measures.batch_sharpness import batch_sharpness
from landscape.measures.critical_sharpness import critical_sharpness
from landscape.measures.directional_sharpness import directional_sharpness
from landscape.measures.fisher_rao_norm import fisher_rao_norm
from landscape.measures.forgetting import forgetting
from landscape.measures.functional_sharpness import functional_sharpness
from landscape.measures.generalized_sharpness import generalized_sharpness
from landscape.measures.geodesic_sharpness import geodesic_sharpness
from landscape.measures.gradient_norm import gradient_norm
from landscape.measures.hessian_top_eigenvalues import top_eigenvalues
from landscape.measures.hessian_trace import trace
from landscape.measures.keskar_sharpness import keskar_sharpness
from landscape.measures.layer_eigenvalues import layer_eigenvalues
from landscape.measures.local_learning_coefficient import local_learning_coefficient
from landscape.measures.negative_curvature import extreme_eigenvalues
from landscape.measures.pac_bayes_sigma import pac_bayes_sigma
from landscape.measures.preconditioned_sharpness import preconditioned_sharpness
from landscape.measures.quantization_rise import quantization_rise
from landscape.measures.relative_critical_sharpness import relative_critical_sharpness
from landscape.measures.relative_flatness import relative_flatness
from landscape.measures.sam_sharpness import sam_sharpness
from landscape.measures.soft_rank import soft_rank
from landscape.measures.spectral_density import spectral_density
from landscape.measures.worst_case_sharpness import worst_case_sharpness
from landscape.problem.parameters import Parameters
from landscape.problem.problem import Problem
from landscape.registry import Registry
from landscape.results.hdf5 import load, save
from landscape.results.result import LabelledArrays, Result
from landscape.sharpness.sharpness import Sharpness
from landscape.surfaces.alignment import align
from landscape.surfaces.comparison import compare_surfaces
from landscape.surfaces.paths import LossPath, path
from landscape.surfaces.persistence import Persistence, persistence
from landscape.surfaces.profiles import Profiles, profiles
from landscape.surfaces.result import Surface
from landscape.surfaces.surface import surface
from trainers.monitor.monitor import Monitor
from trainers.rebuild import problem_from

__all__ = [
    "MEASURES",
    "AsymmetryWarning",
    "CheckpointWarning",
    "InputError",
    "InputWarning",
    "Invariance",
    "LabelledArrays",
    "LossPath",
    "Monitor",
    "NonDeterministicWarning",
    "Parameters",
    "Persistence",
    "Problem",
    "Profiles",
    "Result",
    "Scaling",
    "Sharpness",
    "Surface",
    "adaptive_sharpness",
    "adaptive_top_eigenvalues",
    "align",
    "average_sharpness",
    "basin_radius",
    "batch_sharpness",
    "compare_surfaces",
    "critical_sharpness",
    "directional_sharpness",
    "extreme_eigenvalues",
    "fisher_rao_norm",
    "forgetting",
    "functional_sharpness",
    "generalized_sharpness",
    "geodesic_sharpness",
    "gradient_norm",
    "hessian_diagonal",
    "keep_freed_memory",
    "keskar_sharpness",
    "layer_eigenvalues",
    "load",
    "local_learning_coefficient",
    "pac_bayes_sigma",
    "path",
    "persistence",
    "preconditioned_sharpness",
    "problem_from",
    "profiles",
    "quantization_rise",
    "relative_critical_sharpness",
    "relative_flatness",
    "rescaling",
    "rescaling_invariance",
    "sam_sharpness",
    "save",
    "soft_rank",
    "spectral_density",
    "surface",
    "top_eigenvalues",
    "trace",
    "worst_case_sharpness",
]

__version__: str
MEASURES: Registry[Callable[..., Any]]

def homes() -> dict[str, str]: ...
def import_all() -> None: ...
