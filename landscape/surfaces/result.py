"""The result type of loss surfaces."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from landscape.formatting import number, rounded_up
from landscape.results.result import Result, array, plain
from landscape.surfaces.directions.directions import WHOLE
from landscape.surfaces.grid.rounding import rounding_of_differences


@dataclass(frozen=True, kw_only=True)
class Surface(Result):
    """Loss and accuracy on a line or a plane through the weights.

    `loss[i, j]` belongs to w0 + x[i] d1 + y[j] d2 (one-dimensional arrays for a line). Values are stored as they were
    computed, nan and inf too; `done` says which points were computed at all.

    Attributes:
        x: coordinates along the first direction, in multiples of `unit`.
        y: along the second; None for a line.
        loss: (x, y).
        accuracy: (x, y), in [0, 1]; nan where targets are not class indices.
        done: (x, y), bool: which points have their loss.
        other_loss: (other, x, y), the loss on further datasets, in the order of `others`.
        other_accuracy: (other, x, y).
        gradient_norm: (x, y), ||grad L||, where asked for.
        lambda_min: (x, y), smallest Hessian eigenvalue, where asked for.
        lambda_max: (x, y), largest.
        lambda_error: (x, y), the larger of the two eigenvalues' residual bounds.
        sampling_noise: (draw, x, y), errors of L by the choice of examples, where asked for; 0 at the center.
        marks: (checkpoint, direction) coordinates of checkpoints in the picture, where the directions come from some.
        residuals: (checkpoint,) distance of each from the plane, in multiples of ||w||.
        others: names of the further datasets.
        unit: what one unit of the axes is.
        directions: kind of the directions.
        radius: half-width of a symmetric surface; the farthest end else.
        facts: norms, cosine and filter ratios of the directions, and what their kind adds.
        choice: batch size, memory format and points per launch, with the reason.
        checks: what `landscape.surfaces.picture_checks` found.
        identity: what the surface belongs to: hashes of weights and sample, arguments.
        complete: whether everything that was asked for is there.
    """

    x: np.ndarray = array("x")
    y: np.ndarray | None = array("y", default=None)
    loss: np.ndarray = array("x", "y")
    accuracy: np.ndarray = array("x", "y")
    done: np.ndarray = array("x", "y")
    other_loss: np.ndarray | None = array("other", "x", "y", default=None)
    other_accuracy: np.ndarray | None = array("other", "x", "y", default=None)
    gradient_norm: np.ndarray | None = array("x", "y", default=None)
    lambda_min: np.ndarray | None = array("x", "y", default=None)
    lambda_max: np.ndarray | None = array("x", "y", default=None)
    lambda_error: np.ndarray | None = array("x", "y", default=None)
    sampling_noise: np.ndarray | None = array("draw", "x", "y", default=None)
    marks: np.ndarray | None = array("checkpoint", "direction", default=None)
    residuals: np.ndarray | None = array("checkpoint", default=None)
    others: list[str] = field(default_factory=list)
    unit: str = WHOLE
    directions: str = "gaussian"
    radius: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)
    choice: dict[str, Any] = field(default_factory=dict)
    checks: list[dict[str, Any]] = field(default_factory=list)
    identity: dict[str, Any] = field(default_factory=dict)
    complete: bool = True

    @property
    def axes(self) -> tuple[np.ndarray, ...]:
        """Coordinates of every axis."""
        return (self.x,) if self.y is None else (self.x, self.y)

    @property
    def center(self) -> tuple[int, ...] | None:
        """Index of the trained weights; None where they are not on the grid."""
        zeros = [np.flatnonzero(axis == 0) for axis in self.axes]
        return tuple(int(f[0]) for f in zeros) if all(len(f) for f in zeros) else None

    @property
    def center_loss(self) -> float:
        """Loss at the trained weights; nan where they are not on the grid."""
        return float("nan") if self.center is None else float(self.loss[self.center])

    def merging_coefficients(self, *point: float) -> tuple[float, ...] | None:
        """(a, b) of a point of the picture w0 + a (w1 - w0) + b (w2 - w0), through checkpoints; None elsewhere."""
        if (vectors := self.facts.get("task_vectors")) is None:
            return None
        return tuple(np.linalg.solve(np.array(vectors).T, np.array(point)).tolist())

    @property
    def rounding(self) -> float | None:
        """What differences of the loss owe to bfloat16, float16 or TF32; None where nothing of it was measured.

        Three times the range of the errors at the center, beside it, at the ends of the axes and at the corners.
        """
        return rounding_of_differences(self.facts.get("precision_error") or [])

    @property
    def warnings(self) -> list[str]:
        """Reasons not to believe the picture."""
        return [c["text"] for c in self.checks if not c["ok"]]

    def mesh(self, ending: str, title: str) -> bytes | None:
        """The content of a VTK, STL or glTF file; None for a line."""
        from landscape.surfaces.meshes import MESHES

        return MESHES[ending](self, title) if len(self.axes) == 2 else None

    def caption(self) -> str:
        """What must be said under a figure: how it was computed."""
        samples = self.provenance.get("examples")
        parts = [
            f"{self.directions} directions, seed {self.arguments.get('seed')}",
            f"radius {self.radius:g} {self.unit}",
            f"{samples:,} samples" if samples else "",
            f"BatchNorm {self.provenance['batch_norm']}" if self.provenance.get("has_batch_norm") else "",
            self._precision(),
            f"{np.count_nonzero(self.done)} of {self.done.size} points" if not self.done.all() else "",
        ]
        return "; ".join(p for p in parts if p)

    def _precision(self) -> str:
        precision = self.choice.get("precision", "native")
        named = "" if precision == "native" else str(precision)
        if self.rounding is None:
            return named
        below = f"differences below {number(rounded_up(self.rounding), 2)} are rounding"
        return f"{named or 'half precision'}: {below}"

    def summary(self) -> dict[str, Any]:
        """The entry of summary.json."""
        finite = self.loss[np.isfinite(self.loss)]
        optional = {k: getattr(self, k) for k in ("marks", "residuals") if getattr(self, k) is not None}
        return plain(
            {
                "axes": [axis.tolist() for axis in self.axes],
                "unit": self.unit,
                "center_loss": self.center_loss,
                "min_loss": finite.min() if finite.size else None,
                "max_loss": finite.max() if finite.size else None,
                "radius": self.radius,
                "directions": self.directions,
                "seed": self.arguments.get("seed"),
                "done": np.count_nonzero(self.done),
                "points": int(self.done.size),
                "batch_norm": self.provenance.get("batch_norm"),
                "warnings": self.warnings,
                "checks": self.checks,
                **optional,
                **({} if self.rounding is None else {"rounding": self.rounding}),
                "facts": self.facts,
                "choice": self.choice,
                "cost": self.cost,
                "seconds": self.seconds,
            }
        )
