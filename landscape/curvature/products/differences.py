"""Hessian-vector products by central differences of the gradient: for models without a second derivative."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from landscape import random
from landscape.ball.vectors import norm
from landscape.errors import InputError
from landscape.problem.problem import Problem

_RUNGS = 9
_WORST = 0.01
"""Relative error above which no product is handed out: that of products which are no longer symmetric."""
_KINKS = """
    relu leaky_relu threshold hardtanh _prelu_kernel rrelu_with_noise hardswish hardsigmoid abs maximum minimum
    max_pool2d_with_indices max_pool3d_with_indices mkldnn_max_pool2d
"""
_KINKED = frozenset(_KINKS.split())


class DifferenceProduct:
    """H v by (g(w + h v) - g(w - h v)) / 2h.

    Truncation grows with h^2, rounding with 1 / h, and how large either is depends on the loss and its dtype. Steps
    that shrink by 4 are tried along the gradient, which is rich in the directions that bend most, from
    4 eps^(1/3) (1 + ||w||) on, with the eps of what the network computes in. Quotients of neighboring steps differ by
    15 times the truncation of the shorter one and by four times the rounding of the longer one. The step with the
    smallest sum of both errors is taken.

    Args:
        problem: L.
        w: where (default: the weights of the Problem).
    """

    def __init__(self, problem: Problem, w: Tensor | None = None) -> None:
        self._problem = problem
        self._w = problem.at(w).detach().clone()
        self._slope: Tensor | None = None
        self.step: float | None = None
        self.relative_error: float | None = None

    def gradient(self) -> Tensor:
        """g(w): (d,). Cost: one gradient, once."""
        if self._slope is None:
            self._slope = self._problem.gradient(self._w)
        return self._slope

    def product(self, v: Tensor) -> Tensor:
        """H v: (d,). Cost: two gradients (8 to 19 the first time).

        Raises:
            InputError: no step leaves an error below 1%.
        """
        length = float(norm(v))
        if length == 0:
            return torch.zeros_like(v)
        if self.step is None:
            self._choose_step()
        assert self.step is not None
        return self._quotient(v, self.step / length)

    def facts(self) -> dict[str, Any]:
        """The step and the estimated relative error of a product with the gradient."""
        return {"hvp": "differences", "step": self.step, "hvp_relative_error": self.relative_error}

    def cause(self) -> str:
        """Why products may not be those of a symmetric matrix."""
        kinks = self._kinks()
        if kinks:
            return f"by central differences: the loss has kinks within the step ({', '.join(kinks)})"
        return (
            "by central differences: the loss bends too much within the step, or its gradient is rounded too coarsely "
            f"for its length in {_name(self._problem.computed_in)}"
        )

    def _choose_step(self) -> None:
        direction = self.gradient()
        if not float(norm(direction)) > 0:
            direction = random.normal(self._w, random.stream(0, "differences"))
        direction = direction / norm(direction).to(direction)
        # What the weights hold may be lost where the network computes more coarsely (autocast, mixed precision).
        h = 4 * torch.finfo(self._problem.computed_in).eps ** (1 / 3) * (1 + float(norm(self._w)))
        steps, changes = [h], [float("inf")]
        last = self._quotient(direction, h)
        while len(steps) < _RUNGS and not _rising(changes):
            steps.append(steps[-1] / 4)
            quotient = self._quotient(direction, steps[-1])
            change, size = float(norm(quotient - last)), float(norm(quotient))
            # A quotient of 0 after others: the step is rounded away, and every shorter one.
            changes.append(change / size if size else math.inf if change else 0.0)
            if changes[-1] == math.inf:
                break
            last = quotient
        errors = [a / 15 + b / 4 for a, b in itertools.pairwise(changes)]
        best = min(range(len(errors)), key=errors.__getitem__)
        if not errors[best] <= _WORST:
            raise self._refusal(errors[best])
        self.step, self.relative_error = steps[best], errors[best]

    def _refusal(self, error: float) -> InputError:
        dtype, kinks = _name(self._problem.computed_in), self._kinks()
        reason = "rounding outweighs what the gradient changes over any step"
        if kinks:
            reason += f", or kinks ({', '.join(kinks)}) lie within every longer one"
        advice = (
            "use float64"
            if self._problem.computed_in != torch.float64
            else 'use hvp="double-backward" or a smoother model'
        )
        return InputError(
            f"central differences in {dtype} leave a relative error of {error:.2g} in a Hessian-vector product, at "
            f"most {_WORST} is needed: {reason}; {advice}"
        )

    def _kinks(self) -> list[str]:
        with Operations() as seen:
            self._problem.loss(self._w)
        return seen.kinks

    def _quotient(self, v: Tensor, h: float) -> Tensor:
        self._problem.passes.hvp += self._problem.examples
        ahead, behind = self._problem.gradient(self._w + h * v), self._problem.gradient(self._w - h * v)
        return (ahead - behind).div_(2 * h)


class Operations(TorchDispatchMode):
    """Names of the operations that run within."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        self.names.add(name if name in _KINKED else name.removesuffix("_"))
        return function(*args, **(kwargs or {}))

    @property
    def kinks(self) -> list[str]:
        """Those that are not differentiable everywhere."""
        return sorted(name.strip("_") for name in self.names & _KINKED)


def _rising(changes: list[float]) -> bool:
    """Whether rounding has taken over: quotients of two neighboring steps differ twice as much as those before."""
    return len(changes) > 2 and changes[-1] > 2 * changes[-2] and changes[-2] < _WORST


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
