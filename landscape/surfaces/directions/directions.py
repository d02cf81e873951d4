"""Directions in weight space: drawn, normalized, orthogonalized, with the numbers that say what they are.

A direction d comes with a unit: coordinate a of the surface is w0 + a d, so that the axis counts multiples of
||w0|| ("gaussian", "hessian", ...) or of the norms of w0's filters ("filter") or layers ("layer").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from landscape import random
from landscape.ball.spread import spread_of
from landscape.ball.vectors import cosine, norm, orthogonalized, scaled_to
from landscape.errors import InputError, unknown
from landscape.problem.parameters import Parameters, Slot
from landscape.problem.problem import Problem
from landscape.results import digest

WHOLE, FILTERS, LAYERS, DISTANCE = "||w||", "filter norms", "layer norms", "||w1 - w0||"
RADII = {WHOLE: 0.07, FILTERS: 1.0, LAYERS: 1.0}
"""Default half-width by unit: 0.07 ||w|| for whole-vector directions, 1 for normalized ones (Li 2018)."""


@dataclass(frozen=True)
class Directions:
    """One or two directions from a center.

    Attributes:
        name: the kind ("gaussian", "filter", ...).
        vectors: each (d,), in the dtype and on the device of the weights.
        center: w0, (d,).
        unit: what one unit of an axis is, as drawn on the axis.
        facts: what was computed about them: norms (in multiples of ||w0||), cosine, filter ratios, and what the kind
            adds (eigenvalues, variance explained, ...).
        marks: coordinates of checkpoints in the plane, (checkpoints, directions), where the kind has any.
        residuals: (checkpoints,) distance of each checkpoint from the plane, in multiples of ||w0||.
        ranges: (low, high) an axis where the kind suggests them (the checkpoints and a margin).
    """

    name: str
    vectors: tuple[Tensor, ...]
    center: Tensor
    unit: str
    facts: dict[str, Any] = field(default_factory=dict)
    marks: Tensor | None = None
    residuals: Tensor | None = None
    ranges: tuple[tuple[float, float], ...] | None = None

    def __len__(self) -> int:
        return len(self.vectors)

    def to(self, center: Tensor) -> Directions:
        """The same around `center`, in its dtype and on its device."""
        return replace(self, vectors=tuple(v.to(center) for v in self.vectors), center=center)

    def fingerprint(self) -> str:
        """SHA-256 of the vectors' bytes."""
        return digest.of_parts(self.vectors)


def directions(
    name: str,
    problem: Problem,
    *,
    count: int = 2,
    seed: int = 0,
    biases: bool = False,
    checkpoints: Sequence[Tensor] = (),
    optimizer: Mapping[str, Any] | None = None,
) -> Directions:
    """Directions of the kind `name` at the weights of the problem, orthogonal to each other.

    Args:
        name: "gaussian" (one scale for the whole vector, ||d|| = ||w||), "filter" (each filter of d has the norm of the
            same filter of w; Li 2018, arXiv 1712.09913), "layer" (the same by tensor), "hessian" (eigenvectors of the
            largest eigenvalues), "hessian-ends" (of the largest and the smallest), "gradient", "trajectory" (principal
            directions of `checkpoints`), "checkpoints" (line through two, plane through three), "optimizer" (moments).
        problem: whose weights are the center.
        count: how many, 1 or 2.
        seed: of the draws; direction i depends on the seed and on i alone.
        biases: whether "filter" and "layer" move biases and norm parameters too (each scaled as one tensor). They stay
            by default, by the type of the layer that owns them.
        checkpoints: flat weights of other checkpoints, for "trajectory" and "checkpoints".
        optimizer: state_dict of a torch optimizer, for "optimizer".

    "filter" removes a constant per layer and the scale of a convolution before BatchNorm from the picture: such a
    rescaled network gives the same surface. A scale of its own for every unit is *not* removed, since it changes the
    columns of the next layer's filters unevenly.

    Raises:
        InputError: an unknown name, another count, weights that are zero or not finite, checkpoints of another size.
    """
    if name not in KINDS:
        raise unknown("kind of directions", name, KINDS)
    if count not in (1, 2):
        raise InputError(f"a surface has 1 or 2 directions, received {count}")
    _check_center(problem.weights)
    if name in DRAWN:
        drawn = [_draw(problem.weights, seed, i) for i in range(count)]
        vectors, unit = DRAWN[name](problem, drawn, biases)
        plane = Directions(name, tuple(vectors), problem.weights, unit)
    else:
        plane = _computed(name, problem, count, seed, checkpoints, optimizer)
    return described(plane, problem.parameters)


def _computed(
    name: str,
    problem: Problem,
    count: int,
    seed: int,
    checkpoints: Sequence[Tensor],
    optimizer: Mapping[str, Any] | None,
) -> Directions:
    from landscape.surfaces.directions import computed

    if name == "hessian":
        return computed.hessian(problem, count=count, seed=seed)
    if name == "hessian-ends":
        return computed.hessian(problem, count=count, seed=seed, which="BE")
    if name == "gradient":
        return computed.gradient(problem, count=count, seed=seed)
    if name == "trajectory":
        return computed.trajectory(problem, count=count, checkpoints=checkpoints)
    if name == "checkpoints":
        return computed.through_checkpoints(problem, count=count, checkpoints=checkpoints)
    return computed.optimizer(problem, count=count, seed=seed, state=optimizer)


def described(plane: Directions, parameters: Parameters) -> Directions:
    """The directions with their norms, cosine and filter ratios among the facts."""
    vectors, scale = plane.vectors, norm(plane.center)
    facts: dict[str, Any] = {
        "weight_norm": float(scale),
        "norms": [float(norm(v) / scale) for v in vectors],
        "cosine": float(cosine(*vectors)) if len(vectors) == 2 else None,
        "filter_ratios": [_ratios(parameters, v, plane.center) for v in vectors],
        "sha256": plane.fingerprint(),
    }
    return replace(plane, facts={**facts, **plane.facts})


# -- drawn directions ------------------------------------------------------------------------------------------------


def _draw(like: Tensor, seed: int, index: int) -> Tensor:
    return random.normal(like, random.stream(seed, f"direction {index}"))


def _gaussian(problem: Problem, drawn: list[Tensor], biases: bool) -> tuple[list[Tensor], str]:
    return scaled_to(orthogonalized(drawn), norm(problem.weights)), WHOLE


def _filter(problem: Problem, drawn: list[Tensor], biases: bool) -> tuple[list[Tensor], str]:
    return _normalized(problem, drawn, "filter", biases), FILTERS


def _layer(problem: Problem, drawn: list[Tensor], biases: bool) -> tuple[list[Tensor], str]:
    return _normalized(problem, drawn, "layer", biases), LAYERS


DRAWN: dict[str, Callable[[Problem, list[Tensor], bool], tuple[list[Tensor], str]]] = {
    "gaussian": _gaussian,
    "filter": _filter,
    "layer": _layer,
}
KINDS = (*DRAWN, "hessian", "hessian-ends", "gradient", "trajectory", "checkpoints", "optimizer")


def _normalized(problem: Problem, drawn: list[Tensor], block: str, biases: bool) -> list[Tensor]:
    """Orthogonal within every block and then scaled block by block, so that both hold exactly."""
    parameters = problem.parameters
    weights = parameters.unflatten(problem.weights)
    pieces = [parameters.unflatten(d.clone()) for d in drawn]
    for i, (slot, w) in enumerate(zip(parameters, weights, strict=True)):
        dims = _block_dims(slot, block)
        moved = slot.kind == "weight" or slot.kind == "other" or biases
        for j, tensors in enumerate(pieces):
            rest = tensors[i].double()
            for earlier in pieces[:j]:
                rest = _orthogonal_in_blocks(slot, rest, earlier[i].double(), dims)
            size = slot.norm(rest, dims)
            scale = slot.norm(w, dims) / size
            tensors[i].copy_(rest * torch.where(size > 0, scale, 0.0) if moved else torch.zeros_like(rest))
    return [parameters.flatten(tensors) for tensors in pieces]


def _block_dims(slot: Slot, block: str) -> list[int]:
    """Dimensions within one block; only a weight has filters, everything else is one block."""
    filters = block == "filter" and slot.kind == "weight"
    return [a for a in range(len(slot.shape)) if not (filters and a == slot.filter_axis)]


def _orthogonal_in_blocks(slot: Slot, rest: Tensor, earlier: Tensor, dims: list[int]) -> Tensor:
    # A block of one entry has no second direction: both keep it, and the cosine that results is stored.
    if slot.count(dims) < 2:
        return rest
    for _ in range(2):
        share = slot.sum(rest * earlier, dims) / slot.sum(earlier * earlier, dims)
        rest = rest - torch.nan_to_num(share) * earlier
    return rest


def _ratios(parameters: Parameters, vector: Tensor, center: Tensor) -> dict[str, float]:
    """Smallest, median and largest ||filter of d|| / ||filter of w|| over the filters that move and are not zero."""
    if spread_of(vector) is not None:
        return {}  # a median over the filters of all processes
    parts = []
    for slot, d, w in zip(parameters, parameters.unflatten(vector), parameters.unflatten(center), strict=True):
        if slot.kind == "weight":
            dims = _block_dims(slot, "filter")
            top, bottom = (torch.linalg.vector_norm(t, dim=dims, dtype=torch.float64) for t in (d, w))
            parts.append((top / bottom)[(bottom > 0) & (top > 0)])
    ratios = torch.cat(parts) if parts else center.new_zeros(0)
    if not ratios.numel():
        return {}
    return {"min": float(ratios.min()), "median": float(ratios.median()), "max": float(ratios.max())}


def _check_center(weights: Tensor) -> None:
    size = float(norm(weights))
    if not size > 0 or size == float("inf"):
        what = "are all zero" if size == 0 else "contain nan or inf"
        raise InputError(f"the weights {what}: directions are scaled by them; train the network first")
