"""What landscape computes of a situation, beside what it is by definition. One function an operation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

import landscape
from audit.situation import Situation
from landscape.surfaces.directions.directions import WHOLE, Directions

Operation = Callable[["Look"], None]
ALWAYS = ("loss", "gradient")


class Wrong(Exception):
    """A number is not what it is by definition."""


class Look:
    """One Problem beside its reference.

    Args:
        situation: both sides.
        problem: landscape's.
        slack: what rounding leaves undecided, relative.
    """

    def __init__(self, situation: Situation, problem: landscape.Problem, slack: float) -> None:
        self.situation, self.problem, self.slack = situation, problem, slack
        self.reference = situation.reference
        self.generator = torch.Generator().manual_seed(situation.choice.seed)

    def direction(self) -> Tensor:
        """A standard normal vector (d,), float64."""
        return torch.randn(len(self.reference.w), generator=self.generator, dtype=torch.float64)

    def same(self, what: str, seen: object, right: object, scale: float = 1.0, allowed: float = 0.0) -> None:
        """Raise Wrong where they differ by more than rounding and what is allowed."""
        a, b = (torch.as_tensor(v, dtype=torch.float64).detach() for v in (seen, right))
        if a.shape != b.shape:
            raise Wrong(f"{what} has shape {tuple(a.shape)}, right is {tuple(b.shape)}")
        difference = float((a - b).abs().max()) if a.numel() else 0.0
        if not difference <= self.slack * (scale + float(b.abs().max())) + allowed:
            one = f"{float(a):.9g}, right is {float(b):.9g}" if a.dim() == 0 else f"off by {difference:.3g}"
            raise Wrong(f"{what} is {one}")


def loss(look: Look) -> None:
    look.same("loss()", look.problem.loss(), look.reference.at_weights[0])


def gradient(look: Look) -> None:
    value, computed = look.problem.loss_and_gradient()
    right, slope = look.reference.at_weights
    look.same("loss_and_gradient()[0]", value, right)
    look.same("the gradient", computed, slope)


def elsewhere(look: Look) -> None:
    """Loss and gradient at other weights."""
    w = look.reference.w + 0.1 * look.direction()
    if look.situation.choice.dtype != "float64":
        w = w.float().double()
    value, computed = look.problem.loss_and_gradient(w)
    right, slope = look.reference.gradient(w)
    look.same("loss(w)", look.problem.loss(w), right)
    look.same("loss_and_gradient(w)[0]", value, right)
    look.same("gradient(w)", computed, slope)


def evaluate(look: Look) -> None:
    look.same("evaluate().loss", look.problem.evaluate().loss, look.reference.at_weights[0])


def losses(look: Look) -> None:
    each = look.problem.losses()
    look.same("the number of losses()", len(each), look.problem.examples)
    look.same("losses().mean()", each.mean(), look.reference.at_weights[0])


def hvp(look: Look) -> None:
    v = look.direction()
    if look.situation.choice.dtype != "float64":
        v = v.float().double()
    scale = 1 + float(torch.linalg.matrix_norm(look.reference.hessian))
    look.same("hvp(v)", look.problem.hvp(v), look.reference.hessian @ v, scale * float(v.norm()))


def top_eigenvalues(look: Look) -> None:
    choice = look.situation.choice
    which = ("LA", "SA", "LM")[choice.seed % 3]
    k = min(1 + choice.seed % 2, len(look.reference.w))
    result = landscape.top_eigenvalues(look.problem, k=k, tol=1e-5, which=which, chunk_size=choice.chunk)
    right = np.linalg.eigvalsh(look.reference.hessian.numpy())
    order = {"LA": np.sort(right)[::-1], "SA": np.sort(right)[::-1], "LM": right[np.argsort(-np.abs(right))]}[which]
    wanted = order[-k:] if which == "SA" else order[:k]
    scale = 1e-2 + float(np.abs(right).max())
    for value, bound in zip(result.values, result.error_bounds, strict=True):
        nearest = right[np.argmin(np.abs(right - value))]
        look.same(f"an eigenvalue ({which})", value, nearest, 10 * scale, float(bound))
    # The farthest one cannot be missed but by a start vector without a share of it; further ones may be repeated.
    far = -1 if which == "SA" else 0
    first, right = result.values[far], wanted[far]
    if which == "LM":  # one of both ends may come first where they tie to rounding; each was seen to be an eigenvalue
        first, right = abs(first), abs(right)
    look.same(f"the first eigenvalue ({which})", first, right, 10 * scale, 1e-4 * scale)


def ggn(look: Look) -> None:
    """The largest eigenvalue of the generalized Gauss-Newton matrix."""
    result = landscape.top_eigenvalues(
        look.problem, k=1, tol=1e-5, matrix="ggn", chunk_size=look.situation.choice.chunk
    )
    eigenvalues = torch.linalg.eigvalsh(look.reference.ggn)
    scale = 1e-2 + float(eigenvalues.abs().max())
    look.same("the first eigenvalue of the GGN", result.values[0], eigenvalues[-1], 10 * scale, 1e-4 * scale)


def trace(look: Look) -> None:
    choice = look.situation.choice
    method = ("auto", "auto", "hutch++", "hutchinson")[choice.seed % 4]
    eigenvalues = torch.linalg.eigvalsh(look.reference.hessian)
    right, scale = float(eigenvalues.sum()), 10 * (1e-2 + float(eigenvalues.abs().sum()))
    faults = []
    # An estimate of a few probes misses by five standard errors now and then; not with most of five seeds.
    for seed in range(5):
        result = landscape.trace(look.problem, method=method, probes=24, chunk_size=choice.chunk, seed=seed)
        allowed = 0.0 if result.exact else 5 * result.stderr
        try:
            look.same(f"the trace ({result.method}, {result.matrix})", result.value, right, scale, allowed)
            return
        except Wrong as fault:
            faults.append(fault)
            if result.exact or len(faults) == 3:
                raise


def sam_sharpness(look: Look) -> None:
    value, slope = look.reference.at_weights
    norm = float(slope.norm())
    if norm < 1e-4:
        return
    right = float(look.reference.loss(look.reference.w + 0.05 * slope / norm).detach() - value)
    rise = landscape.sam_sharpness(look.problem, rho=0.05).value
    look.same("sam_sharpness", rise, right, 1 + float(value.abs()), 0.0 if look.slack < 1e-6 else 1e-6 / norm)


def surface(look: Look) -> None:
    """Three points on a line."""
    vector = look.direction()
    vector *= look.reference.w.norm() / vector.norm()
    weights = look.problem.weights
    line = Directions("own", (vector.to(weights),), weights, WHOLE)
    result = landscape.surface(look.problem, line, radius=0.05, grid=3, dimensions=1)
    right = [look.reference.loss(look.reference.w + a * vector).detach() for a in (-0.05, 0.0, 0.05)]
    look.same("the center of the surface", result.loss[1], look.reference.at_weights[0])
    look.same("the surface", result.loss, torch.stack(right))


def gradient_norm(look: Look) -> None:
    look.same("gradient_norm", landscape.gradient_norm(look.problem).value, look.reference.at_weights[1].norm())


def diagonal(look: Look) -> None:
    """The Hessian's diagonal, where landscape calls it exact and the Hessian's."""
    result = landscape.hessian_diagonal(look.problem, probes=8, chunk_size=look.situation.choice.chunk)
    if result.exact and result.matrix == "hessian":
        right = look.reference.hessian.diagonal()
        look.same("hessian_diagonal", result.values, right, 10 + 10 * float(right.abs().max()))


def layers(look: Look) -> None:
    """The largest eigenvalue of each layer's block; a parameter belongs to the layer with the longest fitting name."""
    result = landscape.layer_eigenvalues(look.problem, tol=1e-5, chunk_size=look.situation.choice.chunk)
    entries: dict[str, list[int]] = {name: [] for name in result.layers}
    start = 0
    for name, shape in zip(look.reference.names, look.reference.shapes, strict=True):
        holders = [layer for layer in result.layers if name == layer or not layer or name.startswith(layer + ".")]
        entries[max(holders, key=len)] += range(start, start + shape.numel())
        start += shape.numel()
    hessian = look.reference.hessian
    right = [torch.linalg.eigvalsh(hessian[rows][:, rows])[-1] for rows in entries.values()]
    scale = 1e-2 + float(torch.linalg.matrix_norm(hessian, 2))
    look.same("layer_eigenvalues", result.values[:, 0], torch.stack(right), 10 * scale, 1e-4 * scale)


def undefined(look: Look) -> None:
    raise Wrong(f"there is no L, and loss() is {float(look.problem.loss()):g}")


OPERATIONS: dict[str, Operation] = {
    f.__name__: f
    for f in (
        *(loss, gradient, elsewhere, evaluate, losses, hvp, top_eigenvalues, ggn, trace, sam_sharpness, surface),
        *(gradient_norm, diagonal, layers),
    )
}
ALL = {**OPERATIONS, "undefined": undefined}
