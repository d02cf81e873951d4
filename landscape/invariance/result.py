"""What the invariance test says: every measure at networks of one function, and by how much it varies."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from landscape.results.result import Result, array, plain


@dataclass(frozen=True, kw_only=True)
class Invariance(Result):
    """Every measure at n networks of one function.

    Attributes:
        names: the measures.
        values: (measure, transform).
        reference: (measure,) at the weights themselves.
        rho: (measure,) radius; nan for a measure without one.
        tolerance: (measure,) relative spread up to which differences are rounding.
        logits: (transform, input, output) of the first few inputs.
        output_changes: (transform,) max |f' - f| / max |f| over all inputs.
        mapped: (measure, transform) where a random invertible matrix passes through every head of attention; None
            without such heads.
        mapped_changes: (transform,) as `output_changes`, of these networks.
        groups: the symmetries: dimension, blocks, residual, heads, what was rejected.
        biases: rows of the table on biases: transform, function residual, relative spread under each treatment.
        rotations: pairs of layers without activation between them, rotated: function residual and relative spread.
        identity: of the test: weights, sample, arguments.
    """

    names: list[str]
    values: np.ndarray = array("measure", "transform")
    reference: np.ndarray = array("measure")
    rho: np.ndarray = array("measure")
    tolerance: np.ndarray = array("measure")
    logits: np.ndarray = array("transform", "input", "output")
    output_changes: np.ndarray = array("transform")
    mapped: np.ndarray | None = array("measure", "transform", default=None)
    mapped_changes: np.ndarray | None = array("transform", default=None)
    groups: dict[str, Any] = field(default_factory=dict)
    biases: list[dict[str, Any]] = field(default_factory=list)
    rotations: list[dict[str, Any]] = field(default_factory=list)
    identity: str = ""

    @property
    def measures(self) -> list[str]:
        """Names along the axis `measure`."""
        return self.names

    def of(self, name: str) -> np.ndarray:
        """Values of one measure: (transform,)."""
        return self.values[self.names.index(name)]

    def spread(self, name: str) -> float:
        """(max - min) / |median| over the transforms."""
        return relative_spread(self.of(name))

    def verdict(self, name: str) -> str:
        """In words: invariant (to rounding), or the factor by which the measure varies."""
        return verdict(self.of(name), float(self.tolerance[self.names.index(name)]))

    def attention(self) -> dict[str, Any] | None:
        """What invertible maps of heads do: outputs, and values, spread and verdict of every measure."""
        if self.mapped is None or self.mapped_changes is None:
            return None
        rows = {
            name: {"values": row, "relative_spread": relative_spread(row), "verdict": verdict(row, float(tolerance))}
            for name, row, tolerance in zip(self.names, self.mapped, self.tolerance, strict=True)
        }
        return {"outputs": {"max_relative_change": float(self.mapped_changes.max())}, "measures": rows}

    def summary(self) -> dict[str, Any]:
        """The JSON of `landscape invariance`."""
        measures = {
            name: {
                "values": self.values[i],
                "reference": self.reference[i],
                "rho": None if math.isnan(self.rho[i]) else self.rho[i],
                "relative_spread": self.spread(name),
                "tolerance": self.tolerance[i],
                "verdict": self.verdict(name),
            }
            for i, name in enumerate(self.names)
        }
        change = float(self.output_changes.max()) if len(self.output_changes) else 0.0
        return plain(
            {
                **self.arguments,
                "measures": measures,
                "outputs": {"max_relative_change": change},
                "groups": self.groups,
                "attention": self.attention(),
                "biases": self.biases,
                "not_claimed": {"rotations": self.rotations},
                "cost": self.cost,
                "seconds": self.seconds,
            }
        )


def relative_spread(values: np.ndarray) -> float:
    """(max - min) / |median|; 0 where all are equal, also to 0; nan where one is not finite."""
    if not np.isfinite(values).all():
        return math.nan
    width, center = float(np.ptp(values)), abs(float(np.median(values)))
    return 0.0 if width == 0 else width / center if center > 0 else math.inf


def verdict(values: np.ndarray, tolerance: float) -> str:
    """In words: invariant (to rounding), or by which factor the values vary."""
    if not np.isfinite(values).all():
        return "not finite at some rescalings"
    if relative_spread(values) <= tolerance:
        return "invariant (to rounding)"
    low, high = float(np.abs(values).min()), float(np.abs(values).max())
    if values.min() < 0 < values.max() or low == 0:
        return f"varies between {values.min():.3g} and {values.max():.3g}"
    factor = high / low
    return f"varies by a factor {factor:.3g}" if factor >= 1.01 else f"varies by a factor 1 + {factor - 1:.1e}"
