"""T_w, the diagonal that turns the ball ||epsilon|| <= rho into the ellipsoid ||T_w^-1 epsilon|| <= rho."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from landscape.errors import InputError, unknown
from landscape.problem.parameters import Parameters, Slot

KINDS = {
    "identity": None,
    "elementwise": "element",
    "filterwise": "filter",
    "layerwise": "layer",
    "asam-official": "element",
}
BIASES = ("scaled", "unscaled", "fixed")


@dataclass(frozen=True)
class Scaling:
    """The diagonal T_w of adaptive sharpness.

    Args:
        kind: "identity" (T = 1), "elementwise" (T = |w_i|, Kwon 2021, arXiv 2102.11600), "filterwise" (norm of the
            filter), "layerwise" (norm of the tensor), or "asam-official" (what the authors' code does: |w_i| + eta on
            tensors whose name contains "weight", norm scales included, and 1 on everything else).
        biases: "scaled" (like weights), "unscaled" (T = 1) or "fixed" (T = 0: not perturbed).
        eta: added to every norm of a scaled tensor; None means 0.01 for "asam-official" and 0 otherwise. Any eta > 0
            makes the invariance under rescaling approximate.

    T = 0 at a zero weight: the weight does not move. Nothing divides by T.
    """

    kind: str = "identity"
    biases: str = "scaled"
    eta: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown("scaling", self.kind, KINDS)
        if self.biases not in BIASES:
            raise unknown("treatment of biases", self.biases, BIASES)
        if self.eta is None:
            object.__setattr__(self, "eta", 0.01 if self.kind == "asam-official" else 0.0)
        if not self.eta >= 0:  # type: ignore[operator]
            raise InputError(f"eta must be >= 0, received {self.eta}")

    @classmethod
    def of(cls, scaling: str | Scaling, biases: str = "scaled", eta: float | None = None) -> Scaling:
        """The scaling named by a string, or `scaling` itself where it is one already."""
        return scaling if isinstance(scaling, Scaling) else cls(scaling, biases, eta)

    @property
    def is_identity(self) -> bool:
        """Whether T = 1 everywhere."""
        return self.kind == "identity" and self.biases != "fixed"

    def tensors(self, slots: Iterable[Slot], weights: Sequence[Tensor]) -> list[Tensor] | None:
        """T for each parameter tensor, broadcastable to it; None stands for T = 1 everywhere."""
        if self.is_identity:
            return None
        with torch.no_grad():
            return [self._one(slot, tensor.detach()) for slot, tensor in zip(slots, weights, strict=True)]

    def diagonal(self, parameters: Parameters, w: Tensor) -> Tensor | None:
        """T as a flat vector (d,); None stands for T = 1 everywhere."""
        pieces = self.tensors(parameters, parameters.unflatten(w))
        if pieces is None:
            return None
        return parameters.flatten([p.expand(s.shape) for p, s in zip(pieces, parameters, strict=True)])

    def _one(self, slot: Slot, tensor: Tensor) -> Tensor:
        block = KINDS[self.kind]
        if slot.kind == "bias" and self.biases == "fixed":
            return torch.zeros_like(tensor)
        if self.kind == "asam-official":
            unscaled = "weight" not in slot.name
        else:
            unscaled = block is None or (slot.kind == "bias" and self.biases == "unscaled")
        return torch.ones_like(tensor) if unscaled or block is None else slot.norms(tensor, block) + (self.eta or 0.0)
