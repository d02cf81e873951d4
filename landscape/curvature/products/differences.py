"""Hessian-vector products by central differences of the gradient: for models without a second derivative."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from landscape.problem.problem import Problem


class DifferenceProduct:
    """H v by (g(w + h v) - g(w - h v)) / 2h.

    The step in w has the length eps^(1/3) (1 + ||w||), where truncation (h^2) and rounding (eps / h) balance. The first
    product is also made with twice the step: a third of the difference estimates the error (Richardson).

    Args:
        problem: L.
        w: where (default: the weights of the Problem).
        step: length of the step relative to 1 + ||w||; None is eps^(1/3) of the dtype.
    """

    def __init__(self, problem: Problem, w: Tensor | None = None, *, step: float | None = None) -> None:
        self._problem = problem
        self._w = problem.at(w).detach().clone()
        relative = step or torch.finfo(self._w.dtype).eps ** (1 / 3)
        self.step = relative * (1 + float(torch.linalg.vector_norm(self._w, dtype=torch.float64)))
        self.relative_error: float | None = None

    def product(self, v: Tensor) -> Tensor:
        """H v: (d,). Cost: two gradients (four the first time)."""
        norm = float(torch.linalg.vector_norm(v, dtype=torch.float64))
        if norm == 0:
            return torch.zeros_like(v)
        found = self._quotient(v, self.step / norm)
        if self.relative_error is None:
            coarse = self._quotient(v, 2 * self.step / norm)
            lengths = [torch.linalg.vector_norm(x, dtype=torch.float64) for x in (coarse - found, found)]
            self.relative_error = float(lengths[0] / (3 * lengths[1].clamp(min=1e-300)))
        return found

    def facts(self) -> dict[str, Any]:
        """The step and the estimated relative error of a product."""
        return {"hvp": "differences", "step": self.step, "hvp_relative_error": self.relative_error}

    def _quotient(self, v: Tensor, h: float) -> Tensor:
        self._problem.passes.hvp += self._problem.examples
        ahead, behind = self._problem.gradient(self._w + h * v), self._problem.gradient(self._w - h * v)
        return (ahead - behind).div_(2 * h)
