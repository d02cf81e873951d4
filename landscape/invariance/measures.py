"""What the invariance test takes at each network: every measure of sharpness and curvature, by name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from landscape import MEASURES
from landscape.errors import InputError
from landscape.measures.adaptive_hessian import adaptive_top_eigenvalues
from landscape.measures.adaptive_sharpness import adaptive_sharpness
from landscape.measures.hessian_top_eigenvalues import top_eigenvalues
from landscape.problem.problem import Problem
from landscape.sharpness.options import radii
from landscape.sharpness.sharpness import Sharpness

TREATMENTS = ("scaled", "unscaled", "fixed", "asam-official")
"""Treatments of the biases in T of adaptive sharpness; the last is the ASAM authors' code."""


# Few draws and steps show whether a measure varies.
_EXTRA: dict[str, tuple[str, Mapping[str, Any]]] = {
    "average_sharpness": ("average_sharpness", {"draws": 10}),
    "average_adaptive_sharpness": ("average_sharpness", {"scaling": "elementwise", "draws": 10}),
    "keskar_sharpness": ("keskar_sharpness", {"steps": 5}),
    "pac_bayes_sigma": ("pac_bayes_sigma", {"draws": 4, "tol": 0.05}),
    "pac_bayes_sigma_magnitude_aware": ("pac_bayes_sigma", {"draws": 4, "tol": 0.05, "magnitude_aware": True}),
    "geodesic_sharpness": ("geodesic_sharpness", {"steps": 5, "restarts": 1}),
}
# Of the outputs' curvature, which not every loss has: left out where it has none, or where eigenvalues are.
_CURVATURE: dict[str, tuple[str, Mapping[str, Any]]] = {
    "fisher_rao_norm": ("fisher_rao_norm", {}),
    "relative_flatness": ("relative_flatness", {"probes": 24}),
    "relative_flatness_first_layer": ("relative_flatness", {"layer": "first", "probes": 24}),
    "soft_rank": ("soft_rank", {"matrix": "ggn", "probes": 4, "steps": 10, "takeuchi": False}),
}


@dataclass(frozen=True)
class InvarianceOptions:
    """Radii and effort of the measures that the test takes.

    Attributes:
        rho: of the plain ball, p = 2.
        rho_inf: of the plain ball, p = inf.
        adaptive_rho: of the adaptive balls, p = 2.
        adaptive_rho_inf: of the adaptive balls, p = inf: a fraction of every weight.
        orders: which p.
        steps: of the ascents, one in each ball; 0 leaves the worst case out.
        eigenvalues: whether curvature is taken: the top eigenvalues of H and T H T, and what else is in `extra`.
        extra: further measures: name in the result -> (name in `landscape.MEASURES`, arguments); their `value` counts.
    """

    rho: float = 0.05
    rho_inf: float = 0.005
    adaptive_rho: float = 0.5
    adaptive_rho_inf: float = 0.05
    orders: tuple[float, ...] = (2.0, math.inf)
    steps: int = 20
    eigenvalues: bool = True
    extra: Mapping[str, tuple[str, Mapping[str, Any]]] = field(default_factory=lambda: _EXTRA | _CURVATURE)

    def __post_init__(self) -> None:
        for name in ("rho", "rho_inf", "adaptive_rho", "adaptive_rho_inf"):
            try:
                radii(getattr(self, name))
            except InputError as error:
                raise InputError(str(error).replace("rho=", f"{name}=", 1)) from None
        if not self.orders or any(p not in (2.0, math.inf) for p in self.orders):
            raise InputError(f"p={', '.join(map(str, self.orders))}: the test takes p=2 and p=inf")
        if self.steps < 0:
            raise InputError(f"steps={self.steps}: 0 (no worst case) or more is needed")

    def with_hints(self, hints: Mapping[str, str]) -> InvarianceOptions:
        """The same, where measures that trace the model take these hints."""
        if not hints:
            return self
        text = ",".join(f"{module}={kind}" for module, kind in hints.items())
        extra = {
            name: (registered, {"hints": text, **arguments} if registered == "geodesic_sharpness" else arguments)
            for name, (registered, arguments) in self.extra.items()
        }
        return replace(self, extra=extra)


@dataclass(frozen=True)
class Value:
    """A measure at one network: its value, its radius (nan without one) and the size of its rounding errors."""

    value: float
    rho: float = math.nan
    rounding: float = 0.0


def measure(problem: Problem, settings: InvarianceOptions) -> dict[str, Value]:
    """Every measure of the test at one network: name -> value, radius, rounding."""
    values: dict[str, Value] = {}
    for p in settings.orders:
        ending = "" if p == 2 else "_linf"
        rho, adaptive = (
            (settings.rho, settings.adaptive_rho) if p == 2 else (settings.rho_inf, settings.adaptive_rho_inf)
        )
        plain_ball = adaptive_ball(problem, rho, p, "identity", "scaled", settings.steps)
        take(values, f"sam_sharpness{ending}", f"worst_case_sharpness{ending}", plain_ball)
        if p == 2:
            values["loss"] = Value(plain_ball.loss, rounding=plain_ball.resolution)
            values["sam_loss"] = _added(plain_ball)
            assert plain_ball.first_order is not None
            gradient = float(plain_ball.first_order[0]) / rho
            values["gradient_norm"] = Value(gradient, rounding=plain_ball.resolution)
        for name, scaling, biases, ascent in _ADAPTIVE:
            ball = adaptive_ball(problem, adaptive, p, scaling, biases, settings.steps if ascent else 0)
            take(values, f"{name}{ending}", f"worst_case_{name}{ending}", ball)
            if p == 2 and name == "adaptive_sharpness":
                values["asam_loss"] = _added(ball)
    if settings.eigenvalues:
        scale = 1e3 * torch.finfo(problem.weights.dtype).eps
        tolerance = max(1e-7, scale)
        for name, eigenvalues in (("lambda_max", top_eigenvalues), ("lambda_max_adaptive", adaptive_top_eigenvalues)):
            value = float(eigenvalues(problem, k=1, tol=tolerance).values[0])
            values[name] = Value(value, rounding=scale * abs(value))
    for name, (registered, arguments) in settings.extra.items():
        if name in _CURVATURE and not settings.eigenvalues:
            continue
        try:
            result = MEASURES[registered](problem, **arguments)
        except InputError:
            if name not in _CURVATURE:
                raise
            continue
        value, rho = float(result.value), arguments.get("rho", result.arguments.get("rho"))
        radius = float(rho) if isinstance(rho, int | float) else math.nan
        rounding = 1e3 * torch.finfo(problem.weights.dtype).eps * abs(value) if name in _CURVATURE else 0.0
        values[name] = Value(value, radius, getattr(result, "resolution", rounding))
    return values


# Name, T, biases, and whether the ascents are worth their passes: one step is enough to see that a measure varies.
_ADAPTIVE = (
    ("adaptive_sharpness", "elementwise", "scaled", True),
    ("adaptive_sharpness_fixed_biases", "elementwise", "fixed", True),
    ("adaptive_sharpness_unscaled_biases", "elementwise", "unscaled", False),
    ("asam_official", "asam-official", "scaled", False),
    ("filterwise_sharpness", "filterwise", "scaled", False),
    ("layerwise_sharpness", "layerwise", "scaled", False),
)


def adaptive_ball(problem: Problem, rho: float, p: float, scaling: str, biases: str, steps: int) -> Sharpness:
    """One step, and the worst case where steps are asked for (adaptive_sharpness takes any T, the identity too)."""
    # One ascent is enough: whether it ends in the highest maximum makes no difference to what it is invariant under.
    return adaptive_sharpness(
        problem, rho=rho, p=p, scaling=scaling, biases=biases, steps=steps or 1, restarts=1, one_step_only=not steps
    )


def take(values: dict[str, Value], one_step: str, worst_case: str, ball: Sharpness) -> None:
    """Enter a ball's one-step value and, where it was run, its worst case under these names."""
    assert ball.one_step is not None
    values[one_step] = Value(float(ball.one_step[0]), float(ball.rho[0]), ball.resolution)
    if ball.worst_case is not None:
        values[worst_case] = Value(float(ball.worst_case[0]), float(ball.rho[0]), ball.resolution)


def _added(ball: Sharpness) -> Value:
    assert ball.one_step is not None
    return Value(ball.loss + float(ball.one_step[0]), float(ball.rho[0]), ball.resolution)


def bias_treatments(problem: Problem, rho: float) -> dict[str, float]:
    """One-step adaptive sharpness under each treatment of the biases."""
    values = {}
    for name in TREATMENTS:
        scaling, biases = ("asam-official", "scaled") if name == "asam-official" else ("elementwise", name)
        values[name] = adaptive_sharpness(problem, rho=rho, scaling=scaling, biases=biases, one_step_only=True).value
    return values


def kept_values(measured: Mapping[str, Value]) -> dict[str, list[float]]:
    """What a journal keeps of measured values."""
    return {name: [v.value, v.rho, v.rounding] for name, v in measured.items()}


def read_values(kept: Mapping[str, Sequence[float]]) -> dict[str, Value]:
    """Measured values from what a journal kept."""
    return {name: Value(*v) for name, v in kept.items()}


def values_of_rows(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> np.ndarray:
    """Values (measure, transform)."""
    measured = [read_values(row["measures"]) for row in rows]
    return np.array([[row.get(name, Value(math.nan)).value for row in measured] for name in names])
