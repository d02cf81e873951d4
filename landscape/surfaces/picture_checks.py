"""Is my picture right? Checks that run with every surface, are stored with it and printed under its figure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from landscape.ball.vectors import dot
from landscape.errors import InputError
from landscape.problem.problem import Problem
from landscape.problem.widened import HALF
from landscape.surfaces.grid.quantities import NO_EXAMPLES
from landscape.surfaces.shown_curvature import lowest_curvature, lowest_shown

if TYPE_CHECKING:
    from landscape.surfaces.grid.evaluation import GridEvaluation
    from landscape.surfaces.result import Surface

SATURATED = 0.5
"""Share of points at which a range counts as too large."""
GUESSING = 0.05
"""What counts as better than naming the most frequent class: 5% of the smaller of its share and the rest."""
REPEATED = 1e-5
"""Largest relative difference of two evaluations at the center."""
_LOST = 0.5
"""Share of a step of the grid, beyond which its points are places where rounding has put them."""
_COSINE = 0.05
_NEGATIVE = 0.05
_Errors = Callable[[tuple[float, ...]], float]


@dataclass(frozen=True)
class PictureCheck:
    """What one check of a picture says.

    Attributes:
        name: of the check.
        ok: whether the picture passes.
        text: one sentence for the figure.
        value: the number behind it, where there is one.
    """

    name: str
    ok: bool
    text: str
    value: float | None = None


def check(surface: Surface, problem: Problem, evaluation: GridEvaluation) -> list[dict[str, Any]]:
    """All checks of a finished surface, as plain dicts.

    Cost: three forward passes, one more where the center is not the lowest point; where eigenvalues say more than the
    losses, a Hessian-vector product per axis.
    """
    sampling_error = sampling_errors(problem, evaluation)
    checks = [
        *_deterministic(surface, problem, evaluation),
        *_displacement(surface, problem, evaluation),
        *_range(surface, problem, sampling_error),
        *_saturation(surface, problem),
        *_minimum(surface, problem, sampling_error),
        *_curvature(surface, problem, evaluation),
        *_cosine(surface),
        *_batch_norm(surface, problem),
    ]
    return [asdict(c) for c in checks]


def _deterministic(surface: Surface, problem: Problem, evaluation: GridEvaluation) -> Iterator[PictureCheck]:
    for note in problem.random_causes:
        yield PictureCheck("determinism", False, note)
    index = surface.center
    if index is None:
        return
    with evaluation.opened():
        again = float(evaluation([(0.0,) * len(surface.axes)])[0, 0, 0])
    before = float(surface.loss[index])
    difference = abs(again - before) / max(abs(before), 1e-12)
    if not difference <= REPEATED:  # nan is equal to nothing
        text = f"the loss at the center changed by {difference:.1g} (relative) when it was evaluated again"
        yield PictureCheck("determinism", False, text, difference)
    elif not problem.random_causes:
        text = f"the loss at the center is the same when evaluated again, to {REPEATED:g} (relative)"
        yield PictureCheck("determinism", True, text, difference)


def _rounding(surface: Surface, problem: Problem, loss: float) -> float:
    """What a difference of losses of this size owes to rounding: as measured, else 20 units in the last place."""
    measured = surface.rounding
    return 20 * torch.finfo(problem.computed_in).eps * loss if measured is None else measured


def _displacement(surface: Surface, problem: Problem, evaluation: GridEvaluation) -> Iterator[PictureCheck]:
    """Weights in half precision hold a small step not at all."""
    if problem.weights.dtype not in HALF:
        return
    steps = [float(np.min(np.diff(axis))) for axis in surface.axes if len(axis) > 1]
    lost = max((evaluation.lost(i, step) for i, step in enumerate(steps)), default=0.0)
    dtype = str(problem.weights.dtype).removeprefix("torch.")
    if lost > _LOST:
        text = (
            f"weights in {dtype} do not hold a step of the grid (what is lost is {lost:.0%} of its length): choose a "
            "larger radius, fewer points, or weights in float32 under autocast"
        )
        yield PictureCheck("displacement", False, text, lost)
    else:
        text = f"weights in {dtype} hold a step of the grid but for {lost:.0%} of its length"
        yield PictureCheck("displacement", True, text, lost)


def sampling_errors(problem: Problem, evaluation: GridEvaluation) -> _Errors:
    """Standard error of L(point) - L(center) over samples of n examples, as a function of the point.

    The same examples are used at both, so that it is the deviation of the paired differences divided by sqrt(n). nan
    where the loss gives no value per example.

    Cost: a forward pass a point, and one for all of them at the center.
    """
    at_center: list[Tensor] = []

    def error(point: tuple[float, ...]) -> float:
        try:
            at_point = problem.losses(evaluation.at(point))
            if not at_center:
                at_center.append(problem.losses(evaluation.at((0.0,) * len(point))))
        except NO_EXAMPLES:
            return math.nan
        differences = at_point - at_center[0]
        return float(differences.std() / math.sqrt(problem.examples)) if differences.numel() > 1 else math.nan

    return error


def _range(surface: Surface, problem: Problem, sampling_error: _Errors) -> Iterator[PictureCheck]:
    finite = np.isfinite(surface.loss)
    if not finite.any():
        yield PictureCheck("range", False, "no point has a finite loss: choose a smaller radius")
        return
    loss = np.where(finite, surface.loss, np.nan)
    relief = float(np.nanmax(loss) - np.nanmin(loss))
    rounding = _rounding(surface, problem, float(np.nanmax(np.abs(loss))))
    if relief <= rounding:
        text = "the loss varies by no more than rounding: choose a larger radius"
        if surface.rounding is not None:
            text += ", or float32"
        yield PictureCheck("range", False, text, relief)
        return
    error = sampling_error(_point(surface, np.nanargmax(loss)))
    if relief < 2 * error:
        text = (
            f"the relief {relief:.2g} is within two standard errors of sampling, {2 * error:.2g}: choose a larger "
            "radius or more samples"
        )
        yield PictureCheck("range", False, text, relief / error)
    elif math.isfinite(error) and error > 0:
        text = f"the relief {relief:.3g} (highest loss minus lowest) is {relief / error:.0f} times its sampling error"
        yield PictureCheck("range", True, text, relief / error)


def _saturation(surface: Surface, problem: Problem) -> Iterator[PictureCheck]:
    lost = float(1 - np.isfinite(surface.loss).mean())
    if lost > 0.1:
        yield PictureCheck(
            "saturation", False, f"{lost:.0%} of the points have no finite loss: choose a smaller radius", lost
        )
        return
    chance = chance_accuracy(problem)
    known = surface.accuracy[np.isfinite(surface.accuracy)]
    if chance is not None and known.size:
        better = chance + GUESSING * min(chance, 1 - chance)
        share = float((known <= better).mean())
        if share > SATURATED:
            text = f"{share:.0%} of the points guess (accuracy <= {better:.4g}): choose a smaller radius"
            yield PictureCheck("saturation", False, text, share)
            return
    share = plateau(surface.loss)
    if share > SATURATED:
        yield PictureCheck(
            "saturation", False, f"{share:.0%} of the points lie on a plateau: choose a smaller radius", share
        )
    else:
        yield PictureCheck("saturation", True, f"no more than {SATURATED:.0%} of the points lie on a plateau", share)


def plateau(loss: np.ndarray) -> float:
    """Share of points within 2% of the relief of the highest decile's edge: flat ground far above the minimum."""
    finite = loss[np.isfinite(loss)]
    if finite.size < 9:
        return 0.0
    edge, low = float(np.quantile(finite, 0.9)), float(finite.min())
    return float((np.abs(finite - edge) < 0.02 * (edge - low)).mean()) if edge > low else 0.0


def chance_accuracy(problem: Problem) -> float | None:
    """Accuracy of always naming the most frequent class; None where targets are not class indices."""
    counts: Tensor | None = None
    for batch in problem.batches:
        target = batch.target
        if not isinstance(target, Tensor) or target.is_floating_point() or target.shape != (batch.size,):
            return None
        if int(target.min()) < 0:
            return None
        here = torch.bincount(target)
        if counts is None:
            counts = here
        else:
            longest = max(len(here), len(counts))
            counts = _padded(here, longest) + _padded(counts, longest)
    return None if counts is None else float(counts.max() / counts.sum())


def _padded(counts: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(counts, (0, length - len(counts)))


def _minimum(surface: Surface, problem: Problem, sampling_error: _Errors) -> Iterator[PictureCheck]:
    index = surface.center
    if index is None:
        yield PictureCheck("minimum", False, "the trained weights are not on the grid")
        return
    if not math.isfinite(surface.center_loss):
        yield PictureCheck("minimum", False, f"the loss at the center is not finite ({surface.center_loss})")
        return
    known = ~np.isnan(surface.loss)
    loss = np.where(known, surface.loss, np.inf)
    lowest = int(np.argmin(loss))
    below = float(surface.loss[index] - loss.flat[lowest])
    point = _point(surface, lowest)
    rounding = _rounding(surface, problem, max(abs(surface.center_loss), 1e-12))
    if not below > rounding:
        text = "the center is the lowest point of the picture"
        if below > 0:
            text = f"no point lies below the center by more than rounding, {rounding:.2g}"
        if not known.all():
            text += ", of those whose loss is a number"
        yield PictureCheck("minimum", True, text, 0.0)
        return
    error = sampling_error(point)
    if below < 2 * error:
        text = f"the lowest point is within two standard errors of sampling, {2 * error:.2g}, of the center"
        yield PictureCheck("minimum", True, text, below)
        return
    where = ", ".join(f"{c:.3g}" for c in point)
    text = f"the center is not the minimum: the loss at ({where}) is lower by {below:.2g}"
    yield PictureCheck("minimum", False, text, below)


def _curvature(surface: Surface, problem: Problem, evaluation: GridEvaluation) -> Iterator[PictureCheck]:
    """Hidden is what the eigenvalues say and the picture does not show: not half of lambda_min in any direction."""
    if surface.lambda_min is None or surface.lambda_max is None:
        return
    known = np.isfinite(surface.lambda_min) & np.isfinite(surface.lambda_max)
    if not known.any():
        return
    lowest, highest = (np.where(known, v, 0.0) for v in (surface.lambda_min, surface.lambda_max))
    ratio = np.abs(np.minimum(lowest, 0)) / np.maximum(np.abs(highest), 1e-30)
    negative, worst = ratio > _NEGATIVE, float(ratio.max())
    unsure = _unsure(surface, evaluation.gram())
    shown = lowest_shown(surface.loss, surface.axes, evaluation.gram()) + unsure <= lowest / 2
    hidden = negative & ~shown
    if not negative.any():
        where = "every point" if known.all() else "every point where they are known"
        text = f"no negative curvature to hide: lambda_min >= -{_NEGATIVE} lambda_max at {where}"
        yield PictureCheck("curvature", True, text, worst)
        return
    if not hidden.any():
        text = f"the picture shows the negative curvature that there is (lambda_min/lambda_max down to -{worst:.2g})"
        yield PictureCheck("curvature", True, text, worst)
        return
    share, most, center = hidden.sum() / known.sum(), ratio[hidden].max(), surface.center
    held = center is not None and lowest[center] < 0 and _along(problem, evaluation) <= lowest[center] / 2
    if held and not shown[center]:
        text = (
            "the steps of the picture are too coarse for the negative curvature that its directions have at the center"
        )
        yield PictureCheck("curvature", False, f"{text}: choose a smaller radius or more points", worst)
    elif held:
        text = (
            f"the picture shows the negative curvature at the center; at {share:.0%} of the points lambda_min < "
            f"-{_NEGATIVE} lambda_max lies in directions outside of it (worst ratio {most:.2g})"
        )
        yield PictureCheck("curvature", False, text, worst)
    else:
        text = (
            f"the picture hides negative curvature: lambda_min < -{_NEGATIVE} lambda_max at {share:.0%} of the points "
            f"and no direction of it shows half of that (worst ratio {most:.2g})"
        )
        yield PictureCheck("curvature", False, text, worst)


def _unsure(surface: Surface, gram: np.ndarray) -> float:
    """Error of the picture's second differences by measured rounding."""
    lengths = (np.min(np.diff(axis), initial=np.inf) ** 2 * gram[i, i] for i, axis in enumerate(surface.axes))
    return 2 * (surface.rounding or 0.0) / max(min(lengths), 1e-300)


def _along(problem: Problem, evaluation: GridEvaluation) -> float:
    """Smallest curvature at the center among the directions of the picture; nan without second derivatives.

    Cost: a Hessian-vector product for every direction.
    """
    axes = np.eye(len(evaluation.gram()))
    center = evaluation.at(tuple(0.0 * axes[0]))
    vectors = [evaluation.at(tuple(axis)) - center for axis in axes]
    try:
        products = [problem.hvp(v, center) for v in vectors]
    except (InputError, RuntimeError):
        return math.nan
    hessian = np.array([[float(dot(v, p)) for p in products] for v in vectors])
    return float(lowest_curvature((hessian + hessian.T) / 2, evaluation.gram()))


def _cosine(surface: Surface) -> Iterator[PictureCheck]:
    cosine = surface.facts.get("cosine")
    if cosine is None:
        return
    if abs(cosine) > _COSINE:
        text = f"the directions are not orthogonal (cosine {cosine:.2g}): distances in the picture are distorted"
        yield PictureCheck("cosine", False, text, cosine)
    else:
        yield PictureCheck("cosine", True, f"the directions are orthogonal, |cosine| <= {_COSINE:g}", cosine)


def _batch_norm(surface: Surface, problem: Problem) -> Iterator[PictureCheck]:
    if not problem.evaluator.evaluation_mode and any(m.training for m in problem.model.modules()):
        yield PictureCheck(
            "mode", False, "the network is in training mode: dropout and batch statistics are part of L(w)"
        )
    if problem.evaluator.batch_norms and problem.batch_norm == "frozen":
        # At another checkpoint the center's statistics are simply wrong; near the center they are a choice.
        if surface.marks is not None:
            text = "other checkpoints are drawn with the center's BatchNorm statistics: use the policy recalibrate"
            yield PictureCheck("batch_norm", False, text)
        else:
            text = "BatchNorm statistics of the trained weights are used everywhere (policy frozen)"
            yield PictureCheck("batch_norm", True, text)


def _point(surface: Surface, flat_index: int | np.integer) -> tuple[float, ...]:
    index = np.unravel_index(int(flat_index), surface.loss.shape)
    return tuple(float(axis[i]) for axis, i in zip(surface.axes, index, strict=True))
