"""Directions that are computed instead of drawn: eigenvectors, the gradient, other checkpoints, optimizer moments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from landscape import random
from landscape.ball.vectors import axpy_, dot, norm, orthogonalized, scaled_to, sign_of_largest
from landscape.errors import InputError
from landscape.problem.parameters import Parameters
from landscape.problem.problem import Problem
from landscape.surfaces.directions.directions import DISTANCE, WHOLE, Directions

_TOLERANCE = 1e-3
_MARGIN = 0.15


def hessian(problem: Problem, *, count: int, seed: int, which: str = "LA") -> Directions:
    """Eigenvectors of the Hessian at w, each of length ||w||.

    Args:
        problem: L.
        count: how many.
        seed: of the start vector of Lanczos.
        which: "LA": the largest eigenvalues; "BE": the largest and the smallest one.

    Facts: `eigenvalues` and `residuals`. Cost: 10 to 20 Hessian-vector products, with "BE" 25 to 150.
    """
    from landscape.curvature.krylov import lanczos
    from landscape.curvature.operators import hessian as operator_of

    operator, generator = operator_of(problem), random.stream(seed, "surface eigenvectors")
    wanted = 1 if which == "BE" else count
    options: dict[str, Any] = {"which": which, "tol": _TOLERANCE, "relative_to": "spectrum", "generator": generator}
    pairs = lanczos(operator, wanted, **options)
    vectors = scaled_to(orthogonalized([_signed(v) for v in pairs.vectors[:count]]), norm(problem.weights))
    facts = {
        "eigenvalues": [float(v) for v in pairs.values[:count]],
        "residuals": [float(r) for r in pairs.residuals[:count]],
        "converged": bool(pairs.converged),
    }
    return Directions("hessian" if which == "LA" else "hessian-ends", tuple(vectors), problem.weights, WHOLE, facts)


def _signed(vector: Tensor) -> Tensor:
    """The sign of an eigenvector is arbitrary: its largest entry is made positive, so that pictures agree."""
    return vector * sign_of_largest(vector)


def gradient(problem: Problem, *, count: int, seed: int) -> Directions:
    """The gradient (uphill is to the right) and, as the second direction, a Gaussian one orthogonal to it.

    Cost: one forward and one backward pass.
    """
    slope = problem.gradient()
    size = float(norm(slope))
    if not size > 0:
        raise InputError("the gradient is zero at these weights: it gives no direction; use 'gaussian' or 'hessian'")
    drawn = [random.normal(slope, random.stream(seed, "direction 1"))][: count - 1]
    vectors = scaled_to(orthogonalized([slope, *drawn]), norm(problem.weights))
    return Directions("gradient", tuple(vectors), problem.weights, WHOLE, {"gradient_norm": size})


def through_checkpoints(problem: Problem, *, count: int, checkpoints: Sequence[Tensor]) -> Directions:
    """The line through w0 and another checkpoint, or the plane through w0 and two others.

    One unit of either axis is ||w1 - w0||, so that distances in the picture are distances in weight space; w1 lies at
    (1, 0). Where w0 is a base and w1, w2 were fine-tuned from it, its points are merged networks
    w0 + a (w1 - w0) + b (w2 - w0) (task arithmetic: Ilharco 2022, arXiv 2212.04089).

    Args:
        problem: its weights are w0.
        count: 1 or 2.
        checkpoints: `count` flat vectors (d,), and any number of further ones, which are marked where they lie nearest.

    Facts: `distances` of all from w0; `task_vectors`, the coordinates of w1 - w0 and w2 - w0 in the plane.
    """
    if len(checkpoints) < count:
        shape = "line goes through two checkpoints" if count == 1 else "plane goes through three checkpoints"
        raise InputError(f"a {shape}: the network's own and {count} more are needed, received {len(checkpoints)} more")
    shifts = _shifts(problem, checkpoints)
    vectors = scaled_to(orthogonalized(shifts[:count]), norm(shifts[0]))
    plane = _marked("checkpoints", problem, vectors, DISTANCE, shifts, {})
    assert plane.marks is not None
    facts = {"distances": [float(norm(s)) for s in shifts], "task_vectors": plane.marks[:count].tolist()}
    return replace(plane, facts=facts)


def trajectory(problem: Problem, *, count: int, checkpoints: Sequence[Tensor]) -> Directions:
    """Principal directions of a training trajectory around its last weights w0 (Li 2018, arXiv 1712.09913, section 7).

    The right singular vectors of the rows w_t - w0, not centered, so that the plane contains w0. Computed from the
    inner products of the rows, in float64: no d x d matrix, no copy of the rows.

    Args:
        problem: its weights are w0.
        count: 1 or 2.
        checkpoints: flat vectors (d,) in the order of training; w0 itself may be among them.

    Facts: `variance_explained` by each direction. The result's `residuals` say how far each checkpoint lies off the
    plane: the loss drawn under it is not its loss.
    """
    shifts = _shifts(problem, checkpoints)
    if len(shifts) < count:
        raise InputError(
            f"a trajectory with {count} directions needs {count} earlier checkpoints, received {len(shifts)}"
        )
    gram = torch.stack([torch.stack([dot(a, b) for b in shifts]) for a in shifts])
    values, coefficients = torch.linalg.eigh(gram)
    values, coefficients = values.flip(0).clamp(min=0), coefficients.flip(1)
    if not values[count - 1] > 1e-12 * values[0]:
        raise InputError(f"the checkpoints do not span {count} directions: give more of them, further apart")
    vectors = [sum(c.to(s) * s for c, s in zip(coefficients[:, k], shifts, strict=True)) for k in range(count)]
    vectors = [v if float(dot(v, shifts[0])) >= 0 else -v for v in vectors]  # type: ignore[arg-type]
    vectors = scaled_to(orthogonalized(vectors), norm(problem.weights))
    facts = {"variance_explained": (values[:count] / values.sum()).tolist(), "checkpoints": len(shifts)}
    return _marked("trajectory", problem, vectors, WHOLE, shifts, facts)


def optimizer(problem: Problem, *, count: int, seed: int, state: Mapping[str, Any] | None) -> Directions:
    """The optimizer's moments: the momentum (Adam's first moment) and the root of Adam's second one.

    An optimizer without second moments gives a Gaussian direction, orthogonal to the first, as the second.

    Args:
        problem: L.
        count: 1 or 2.
        seed: of the Gaussian direction.
        state: `state_dict()` of a torch optimizer over all of the model's parameters, in their order.
    """
    if state is None:
        raise InputError("the kind 'optimizer' needs the optimizer's state_dict: give a checkpoint that holds one")
    first, second = moments(problem, state)
    drawn = random.normal(problem.weights, random.stream(seed, "direction 1"))
    chosen = [first, drawn if second is None else second.clamp(min=0).sqrt()][:count]
    vectors = scaled_to(orthogonalized(chosen), norm(problem.weights))
    facts = {"moments": "first and second" if second is not None else "first; the second direction is Gaussian"}
    return Directions("optimizer", tuple(vectors), problem.weights, WHOLE, facts)


def moments(problem: Problem, state: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
    """First and second moments of a torch optimizer's state as flat vectors; the second is None where it has none."""
    order = [name for name, p in problem.model.named_parameters() if p.requires_grad]
    held = dict(zip(order, (state.get("state", {}).get(i, {}) for i in range(len(order))), strict=True))
    first = _collected(problem.parameters, held, ("exp_avg", "momentum_buffer"), problem.weights)
    if first is None or not float(norm(first)) > 0:
        raise InputError("the optimizer holds no moments (SGD without momentum, or before its first step)")
    return first, _collected(problem.parameters, held, ("exp_avg_sq",), problem.weights)


def _collected(
    parameters: Parameters, held: Mapping[str, Mapping[str, Any]], keys: Sequence[str], like: Tensor
) -> Tensor | None:
    pieces = []
    for slot in parameters:
        tensor = next((held[slot.name][k] for k in keys if held.get(slot.name, {}).get(k) is not None), None)
        if tensor is None:
            return None
        if tensor.shape != slot.shape:
            raise InputError(
                f"the optimizer's state of {slot.name} has shape {tuple(tensor.shape)}, the parameter "
                f"{tuple(slot.shape)}: it belongs to another network"
            )
        pieces.append(tensor.reshape(-1))
    return torch.cat(pieces).to(like)


def _shifts(problem: Problem, checkpoints: Sequence[Tensor]) -> list[Tensor]:
    """w_t - w0 of the checkpoints that differ from w0."""
    if not checkpoints:
        raise InputError("this kind of directions needs the weights of other checkpoints: give them")
    for w in checkpoints:
        if w.shape != problem.weights.shape:
            raise InputError(
                f"a checkpoint has {w.numel():,} parameters, the network {problem.dimension:,}: "
                "checkpoints of one architecture are needed"
            )
    shifts = [w.to(problem.weights) - problem.weights for w in checkpoints]
    return [s for s in shifts if float(norm(s)) > 0]


def _marked(
    name: str, problem: Problem, vectors: Sequence[Tensor], unit: str, shifts: Sequence[Tensor], facts: dict[str, Any]
) -> Directions:
    """Directions with the coordinates of the checkpoints, their distance from the plane, and a range that shows all."""
    marks = torch.stack([torch.stack([dot(s, v) / dot(v, v) for v in vectors]) for s in shifts])
    marks = torch.cat([marks, marks.new_zeros(1, len(vectors))])
    residuals = []
    for shift, mark in zip([*shifts, torch.zeros_like(shifts[0])], marks, strict=True):
        rest = shift.clone()
        for coordinate, vector in zip(mark.tolist(), vectors, strict=True):
            axpy_(rest, -coordinate, vector)
        residuals.append(norm(rest) / norm(problem.weights))
    low, high = marks.min(0).values, marks.max(0).values
    margin = _MARGIN * (high - low)
    ranges = tuple(zip((low - margin).tolist(), (high + margin).tolist(), strict=True))
    return Directions(name, tuple(vectors), problem.weights, unit, facts, marks, torch.stack(residuals), ranges)
