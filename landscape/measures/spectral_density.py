"""Density of all eigenvalues of the Hessian."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from landscape import random
from landscape.curvature import operators, stochastic
from landscape.errors import InputError
from landscape.measure import measure
from landscape.problem.problem import Problem
from landscape.results.result import Result, array
from landscape.statistics import standard_error

_REACH = 6.0  # kernel widths beyond the outermost node: 2e-9 of its mass lies further out


@dataclass(frozen=True, kw_only=True)
class SpectralDensity(Result):
    """Density of the eigenvalues of a d x d matrix, smoothed; d times its integral over an interval counts them.

    Attributes:
        axis: (points,) eigenvalues, equally spaced.
        density: (points,) mean over probes; integrates to 1 over the axis.
        stderr: (points,) standard error over probes.
        low: (points,) 10% quantile over probes.
        high: (points,) 90% quantile over probes.
        width: standard deviation of the Gaussian kernel.
        log_axis: (points,) log10 |lambda|, from the floor up.
        log_positive: (points,) density of log10 lambda of the positive eigenvalues.
        log_negative: (points,) density of log10 |lambda| of the negative ones; the two integrate to 1 together.
        log_width: standard deviation of the kernel, in decades.
        floor: |lambda| below which eigenvalues are drawn at this value: they are zero for these probes.
        nodes: (probes, steps) Ritz values.
        weights: (probes, steps) their weights; each row sums to 1.
        moment: the orders 1 and 2.
        moment_values: (2,) tr H / d and ||H||_F^2 / d.
        moment_stderr: (2,) their standard errors.
        hvps: Hessian-vector products spent.
        reorthogonalized: whether the Lanczos vectors were kept orthogonal (they fitted in memory).
    """

    axis: np.ndarray = array("axis")
    density: np.ndarray = array("axis")
    stderr: np.ndarray = array("axis")
    low: np.ndarray = array("axis")
    high: np.ndarray = array("axis")
    width: float
    log_axis: np.ndarray = array("log_axis")
    log_positive: np.ndarray = array("log_axis")
    log_negative: np.ndarray = array("log_axis")
    log_width: float
    floor: float
    nodes: np.ndarray = array("probe", "node")
    weights: np.ndarray = array("probe", "node")
    moment: np.ndarray = array("moment")
    moment_values: np.ndarray = array("moment")
    moment_stderr: np.ndarray = array("moment")
    hvps: int
    reorthogonalized: bool

    def summary(self) -> dict[str, Any]:
        """Range, moments with standard errors, and the share of negative eigenvalues; no curves."""
        values = {
            "smallest": self.nodes.min(),
            "largest": self.nodes.max(),
            "negative_share": float((self.weights * (self.nodes < -self.floor)).sum(1).mean()),
            "trace_per_parameter": {"value": self.moment_values[0], "stderr": self.moment_stderr[0]},
            "squares_per_parameter": {"value": self.moment_values[1], "stderr": self.moment_stderr[1]},
            "width": self.width,
            "hvps": self.hvps,
        }
        return self.summary_of(values)


@measure(
    "spectral_density",
    label="{matrix} spectrum",
    meaning="How many directions have which curvature: most of them have next to none.",
    unit="loss / weight²",
    fields={
        "largest": ("Largest Ritz value of the spectrum", "", "The estimate's upper end of the spectrum."),
        "smallest": (
            "Smallest Ritz value of the spectrum",
            "",
            "Its lower end: below 0 the loss curves downward somewhere.",
        ),
        "negative_share": (
            "Share of negative curvature",
            "",
            "Directions along which the loss curves downward, of all.",
        ),
    },
)
def spectral_density(
    problem: Problem,
    w: Tensor | None = None,
    *,
    probes: int = 10,
    steps: int = 50,
    points: int = 1024,
    width: float | None = None,
    log_width: float = 0.1,
    matrix: str = "hessian",
    scaling: str = "identity",
    parameters: str | None = None,
    chunk_size: int | None = None,
    seed: int = 0,
) -> SpectralDensity:
    """Spectral density of the Hessian by stochastic Lanczos quadrature, with a band over probes.

    Each Rademacher probe gives `steps` Ritz values theta_i with weights tau_i, the *squared first components* of the
    eigenvectors of T; the density is sum_i tau_i N(x; theta_i, width^2), averaged over probes.
    Single eigenvalues above the bulk carry a weight of 1/d each: look for them with `hessian_top_eigenvalues`.
    Lanczos vectors are kept orthogonal (ghost copies would appear otherwise) where they fit in a quarter of the free
    memory; beyond that the three-term recurrence runs without.

    Cost: probes x steps Hessian-vector products.

    Args:
        problem: L.
        w: where (default: the weights of the Problem).
        probes: start vectors; at least 4, at least 10 for a band worth its name.
        steps: Lanczos steps of each; capped at d.
        points: of each axis.
        width: standard deviation of the kernel; None is 1% of the range of the Ritz values.
        log_width: the same on the logarithmic axis, in decades.
        matrix: "hessian", "ggn", "fisher", "mc-fisher" or "empirical-fisher".
        scaling: T of T H T: identity, elementwise, filterwise, layerwise or asam-official.
        parameters: shell pattern: the block of these parameters alone.
        chunk_size: examples differentiated at once; None chooses.
        seed: draws the probes.

    Raises:
        InputError: fewer than 4 probes, steps < 1, fewer than 16 points, a width <= 0 or below the axis' spacing.

    Source: Golub and Meurant 2010; Ghorbani 2019 (arXiv 1901.10159); logarithmic axis: Papyan 2020.

    Example:
        >>> import landscape, torch
        >>> line = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
        >>> x, _ = torch.ones(4, 1, dtype=torch.float64), torch.nn.init.ones_(line.weight)
        >>> problem = landscape.Problem(line, torch.nn.MSELoss(), [(x, 2 * x)])  # L(w) = (w - 2)^2 at w = 1
        >>> density = landscape.spectral_density(problem, probes=4)
        >>> [round(v, 6) for v in density.moment_values.tolist()]  # tr(H) / d, tr(H^2) / d
        [2.0, 4.0]
    """
    _check(probes, steps, points, width, log_width)
    operator = operators.build(
        problem, matrix, w, scaling=(scaling, "scaled"), parameters=parameters, chunk_size=chunk_size
    )
    fits = stochastic.fits(operator.like, steps)
    ritz = stochastic.quadrature(
        operator.matvec,
        operator.like,
        probes=probes,
        steps=steps,
        reorthogonalize=fits,
        generator=random.stream(seed, "spectral density"),
    )
    return SpectralDensity(
        **_linear(ritz, points, width),
        **_logarithmic(ritz, points, log_width, float(np.finfo(operator.to_scipy().dtype).eps)),
        **_moments(ritz),
        nodes=ritz.nodes,
        weights=ritz.weights,
        hvps=ritz.products,
        reorthogonalized=fits,
        provenance=operator.facts(),
    )


def _linear(ritz: stochastic.Quadrature, points: int, width: float | None) -> dict[str, Any]:
    low, high = ritz.nodes.min(), ritz.nodes.max()
    scale = max(high - low, abs(high), abs(low)) or 1.0
    sigma = width or 0.01 * scale
    axis = np.linspace(low - _REACH * sigma, high + _REACH * sigma, points)
    if axis[1] - axis[0] > sigma:
        needed = int((high - low) / sigma + 2 * _REACH) + 2
        raise InputError(f"width {sigma:g} is below the spacing of the axis: at least {needed} points are needed")
    rows = stochastic.smoothed(ritz.nodes, ritz.weights, axis, sigma)
    return {
        "axis": axis,
        "density": rows.mean(0),
        "stderr": standard_error(rows),
        "low": np.quantile(rows, 0.1, axis=0),
        "high": np.quantile(rows, 0.9, axis=0),
        "width": float(sigma),
    }


def _logarithmic(ritz: stochastic.Quadrature, points: int, width: float, epsilon: float) -> dict[str, Any]:
    largest = np.abs(ritz.nodes).max() or 1.0
    # Ritz values below the rounding of the products are zeros of either sign.
    floor = 10 * epsilon * largest
    decades = np.log10(np.maximum(np.abs(ritz.nodes), floor))
    axis = np.linspace(np.log10(floor) - _REACH * width, np.log10(largest) + _REACH * width, points)
    if axis[1] - axis[0] > width:
        raise InputError(f"log_width {width:g} is below the spacing {axis[1] - axis[0]:.3g} of the axis: more points")
    negative = ritz.nodes < 0
    return {
        "log_axis": axis,
        "log_positive": stochastic.smoothed(decades, ritz.weights * ~negative, axis, width).mean(0),
        "log_negative": stochastic.smoothed(decades, ritz.weights * negative, axis, width).mean(0),
        "log_width": float(width),
        "floor": float(floor),
    }


def _moments(ritz: stochastic.Quadrature) -> dict[str, Any]:
    samples = np.stack([ritz.moments(1), ritz.moments(2)])
    return {
        "moment": np.array([1, 2]),
        "moment_values": samples.mean(1),
        "moment_stderr": standard_error(samples, 1),
    }


def _check(probes: int, steps: int, points: int, width: float | None, log_width: float) -> None:
    if probes < 4:
        raise InputError(f"at least 4 probes are needed for a band, received {probes}")
    if steps < 1:
        raise InputError(f"at least 1 Lanczos step is needed, received {steps}")
    if points < 16:
        raise InputError(f"at least 16 points are needed, received {points}")
    for name, value in (("width", width), ("log_width", log_width)):
        if value is not None and not value > 0:
            raise InputError(f"{name} must be > 0, received {value}")
