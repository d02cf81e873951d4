"""Unit balls of norms on weight vectors: the point of the ball furthest along a vector, and the dual norm.

Steepest descent in a norm steps along the furthest point d* of -g: w - eta ||g||_* d*. In l_inf d* is the sign, in the
spectral norm of a matrix the product U V' of its singular vectors (Muon's direction, without momentum).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from landscape.ball.vectors import norm
from landscape.errors import unknown
from landscape.problem.parameters import Parameters

NORMS = ("l2", "linf", "spectral")
VECTOR_NORMS = ("l2", "linf")


@dataclass(frozen=True)
class NormBall:
    """The ball {d: ||d|| <= 1} in the space of a model's weights.

    "l2" and "linf" are norms of the flat vector. "spectral" is max over the tensors: of a matrix (a tensor of two and
    more dimensions, flattened to shape[0] rows) its largest singular value, of a vector (biases, scales) the norm
    `vectors`.

    Raises:
        InputError: an unknown norm.
    """

    kind: str
    parameters: Parameters
    vectors: str = "l2"

    def __post_init__(self) -> None:
        if self.kind not in NORMS:
            raise unknown("norm", self.kind, NORMS)
        if self.vectors not in VECTOR_NORMS:
            raise unknown("norm of vectors", self.vectors, VECTOR_NORMS)

    def furthest(self, h: Tensor) -> Tensor:
        """The point of the ball that maximizes <d, h>: (d,); 0 along the entries (or tensors) where h is 0."""
        return self.furthest_and_dual(h)[0]

    def furthest_and_dual(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """That point, and <d, h> = ||h||_*, a 0-dim float64 tensor."""
        if self.kind != "spectral":
            return _of_vector(h, self.kind)
        pairs = [
            _of_matrix(t.reshape(t.shape[0], -1)) if t.dim() > 1 else _of_vector(t.reshape(-1), self.vectors)
            for t in self.parameters.unflatten(h)
        ]
        return self.parameters.flatten([p for p, _ in pairs]), torch.stack([dual for _, dual in pairs]).sum()


def _of_vector(h: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    if kind == "linf":
        return h.sign(), norm(h, 1)
    length = norm(h)
    return torch.where(length > 0, h / length.to(h), torch.zeros_like(h)), length


def _of_matrix(h: Tensor) -> tuple[Tensor, Tensor]:
    u, s, vt = torch.linalg.svd(h.double(), full_matrices=False)
    return torch.where(s.max() > 0, u @ vt, torch.zeros_like(h.double())).to(h), s.sum()
