"""Trace of the Hessian, exact where that is possible, and of each of its layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape import random
from landscape.ball.scaling import Scaling
from landscape.curvature import operators, stochastic
from landscape.curvature.exact.trace import Squares, squares_by
from landscape.errors import InputError, unknown
from landscape.formatting import number
from landscape.measure import measure
from landscape.problem.problem import Problem
from landscape.results.result import Result, array

METHODS = ("auto", "exact", "hutch++", "hutchinson")


@dataclass(frozen=True, kw_only=True)
class Trace(Result):
    """Trace of a d x d matrix and of its diagonal blocks, one a parameter tensor.

    Attributes:
        value: the trace.
        stderr: its standard error, widened for the few probes that it rests on: value +- 1.96 stderr is a 95% interval.
            0 where nothing was sampled.
        exact: whether it is a sum in closed form, without Hessian-vector products.
        matrix: "hessian" or "ggn": of which matrix `value` is the trace.
        method: "exact", "hutch++", "hutchinson", or "unit vectors" where the products suffice for one with each.
        obstacle: what keeps the GGN's trace from being the Hessian's; None where nothing does or it does not matter.
        layers: names of the parameter tensors.
        layer_values: (layers,) traces of the diagonal blocks; they sum to `value`.
        layer_stderr: (layers,) the same for them; up to 1.41 times too large where layers are coupled.
        hvps: Hessian-vector products spent.
    """

    value: float
    stderr: float
    exact: bool
    matrix: str
    method: str
    obstacle: str | None = None
    layers: list[str]
    layer_values: np.ndarray = array("layer")
    layer_stderr: np.ndarray = array("layer")
    hvps: int

    def summary(self) -> dict[str, Any]:
        """Value, stderr, which matrix, exact or not, and the traces of the layers by name."""
        names = ("value", "stderr", "exact", "matrix", "method", "obstacle", "hvps")
        layers = dict(zip(self.layers, self.layer_values, strict=True))
        return self.summary_of({name: getattr(self, name) for name in names} | {"layers": layers})


def _says(summary: Mapping[str, Any], loss: float) -> str:
    value = summary.get("value")
    plain = {"matrix": "hessian", "scaling": "identity", "parameters": None}
    if not isinstance(value, int | float) or any(summary.get(k, v) != v for k, v in plain.items()):
        return ""
    sampled = summary.get("method") in ("hutch++", "hutchinson")
    how = "estimated with random probes" if sampled else "exact"
    return (
        f"The sum of all curvatures is {number(value, 3)} ({how}): small noise of scale σ in every weight raises the "
        "loss by half of it times σ²."
    )


@measure(
    "hessian_trace",
    label="{matrix} trace",
    meaning="Sum of the curvatures of the loss over all directions. Smaller is flatter.",
    unit="loss / weight²",
    flat="small",
    says=_says,
)
def trace(
    problem: Problem,
    w: Tensor | None = None,
    *,
    method: str = "auto",
    probes: int = 100,
    target: float | None = None,
    scaling: str = "identity",
    parameters: str | None = None,
    chunk_size: int | None = None,
    seed: int = 0,
) -> Trace:
    """Trace of the Hessian, with standard error, or exact.

    "exact" computes the trace of the generalized Gauss-Newton matrix without sampling, in about one backward pass per
    class (see `curvature.exact_trace`). It is the Hessian's trace for piecewise-linear networks with frozen BatchNorm
    (ReLU, LeakyReLU, PReLU, max-pooling, residual connections): there no single weight has a second derivative of the
    outputs. Elsewhere (LayerNorm, tanh, GELU, attention, a layer applied twice in depth) the residual term is missing:
    `matrix` is then "ggn", `obstacle` says why, and it must be called nothing else.
    "auto" takes "exact" where it is the Hessian's, else "hutch++".

    Cost: exact 1 to 2 Hessian-vector products for ten classes; else at most `probes` of them. 100 Hutchinson probes
    still leave 1 to 6% error; Hutch++ about 1%.
    Source: Hutchinson 1990 (tr H = E v'Hv, v of independent +-1); Hutch++: Meyer 2021 (arXiv 2010.09649).

    Args:
        problem: L.
        w: where (default: the weights of the Problem).
        method: "auto", "exact", "hutch++" or "hutchinson".
        probes: Hessian-vector products allowed for the estimates.
        target: relative standard error at which the estimates stop, after 16 random vectors at the earliest.
        scaling: T of T H T: identity, elementwise, filterwise, layerwise or asam-official.
        parameters: shell pattern: the block of these parameters alone.
        chunk_size: examples differentiated at once; None chooses.
        seed: draws the probes.

    Raises:
        InputError: an unknown method, fewer than 4 probes, a target <= 0; for "exact" outputs that are no
            (examples, outputs) matrix or examples that influence each other.

    Example:
        >>> import landscape, torch
        >>> line = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
        >>> x, _ = torch.ones(4, 1, dtype=torch.float64), torch.nn.init.ones_(line.weight)
        >>> problem = landscape.Problem(line, torch.nn.MSELoss(), [(x, 2 * x)])  # L(w) = (w - 2)^2 at w = 1
        >>> trace = landscape.trace(problem)
        >>> round(trace.value, 6), trace.exact, trace.label
        (2.0, True, 'Hessian trace')
    """
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    stochastic.check(probes, target)
    if parameters is not None:
        if w is not None:
            raise InputError("parameters= restricts the model at its own weights: give either w or parameters")
        problem = problem.restricted(parameters)
    diagonal = Scaling.of(scaling).diagonal(problem.parameters, problem.at(w))
    squares = squares_by(method, problem, w, diagonal=diagonal is not None, chunk_size=chunk_size)
    if squares is not None:
        return _exact(problem, squares, diagonal)
    operator = operators.scaled(operators.hessian(problem, w, chunk_size=chunk_size), diagonal)
    estimate = stochastic.trace(
        operator.matvec,
        operator.like,
        probes=probes,
        sketch=method != "hutchinson",
        target=target,
        blocks=[s.shape.numel() for s in problem.parameters],
        generator=random.stream(seed, "trace"),
    )
    return Trace(
        value=estimate.value,
        stderr=estimate.stderr,
        exact=False,
        matrix="hessian",
        method=estimate.method,
        layers=list(problem.parameters.names),
        layer_values=estimate.blocks,
        layer_stderr=estimate.block_stderr,
        hvps=estimate.products,
    )


def _exact(problem: Problem, squares: Squares, diagonal: Tensor | None) -> Trace:
    tensors = squares.tensors
    if diagonal is not None:
        scales = problem.parameters.unflatten(diagonal)
        tensors = [(x * t.double().square()).sum() for x, t in zip(tensors, scales, strict=True)]
    values = torch.stack(tensors).cpu().numpy()
    if not np.isfinite(values).all():
        raise InputError("the trace is not finite: check that the loss is finite at these weights on every batch")
    return Trace(
        value=float(values.sum()),
        stderr=0.0,
        exact=True,
        matrix="hessian" if squares.obstacle is None else "ggn",
        method="exact",
        obstacle=squares.obstacle,
        layers=list(problem.parameters.names),
        layer_values=values,
        layer_stderr=np.zeros_like(values),
        hvps=0,
    )
