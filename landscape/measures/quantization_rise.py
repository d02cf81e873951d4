"""Rise of the loss where the weights are rounded to few bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.ball.vectors import dot, norm
from landscape.curvature import operators
from landscape.errors import InputError
from landscape.formatting import number
from landscape.measure import measure
from landscape.problem.parameters import Slot
from landscape.problem.problem import Problem
from landscape.progress import Bar
from landscape.results.result import Result, array
from landscape.sharpness.checks import check_loss, check_weights, resolution
from landscape.sharpness.subsets import check_division, disjoint_subsets, positive
from landscape.statistics import interval_around

GRANULARITIES = ("channel", "tensor")
"""What shares a scale: a slice along the output dimension of a weight (one output row of a Linear), or all of it."""
_MOST_BITS = 16


@dataclass(frozen=True, kw_only=True)
class QuantizationRise(Result):
    """Rise of the loss under rounding of the weights, at several widths and for both kinds of scales.

    Attributes:
        bits: widths, in the order in which they were asked for.
        granularities: "channel" and "tensor": what shares a scale.
        rise: (granularity, bits) L(w + e) - L(w), e = Q(w) - w.
        first_order: (granularity, bits) g'e.
        second_order: (granularity, bits) e'He / 2; with `first_order` the quadratic prediction of the rise.
        error_norm: (granularity, bits) ||e||.
        loss: L(w).
        quantized: weights that are rounded, each tied one once.
        kept: parameters that stay as they are (biases, normalization, tokens).
        subsets: (subset, granularity, bits) the rise on each disjoint subset of the examples; None where not asked for.
        interval: (bound, granularity, bits) 95% confidence interval over samples of as many examples; None likewise.
        resolution: estimate of the rounding of a rise in the model's dtype; rises below it are not known.
    """

    bits: np.ndarray = array("bits")
    granularities: list[str]
    rise: np.ndarray = array("granularity", "bits")
    first_order: np.ndarray = array("granularity", "bits")
    second_order: np.ndarray = array("granularity", "bits")
    error_norm: np.ndarray = array("granularity", "bits")
    loss: float
    quantized: int
    kept: int
    subsets: np.ndarray | None = array("subset", "granularity", "bits", default=None)
    interval: np.ndarray | None = array("bound", "granularity", "bits", default=None)
    resolution: float = 0.0

    @property
    def value(self) -> float:
        """The rise at the first width, with a scale for each channel."""
        return float(self.rise[0, 0])

    @property
    def predicted(self) -> np.ndarray:
        """(granularity, bits) g'e + e'He / 2."""
        return self.first_order + self.second_order

    def summary(self) -> dict[str, Any]:
        """Arguments, the value with its interval, and one row a granularity and width."""
        rows = [
            {
                "granularity": name,
                "bits": int(b),
                "value": self.rise[i, j],
                "first_order": self.first_order[i, j],
                "second_order": self.second_order[i, j],
                "predicted": self.predicted[i, j],
                "error_norm": self.error_norm[i, j],
                **({} if self.interval is None else {"low": self.interval[0, i, j], "high": self.interval[1, i, j]}),
            }
            for i, name in enumerate(self.granularities)
            for j, b in enumerate(self.bits)
        ]
        known = {k: v for k, v in rows[0].items() if k not in ("granularity", "bits")}
        names = ("loss", "quantized", "kept", "resolution")
        return self.summary_of(known | {name: getattr(self, name) for name in names} | {"rows": rows})


def _says(summary: Mapping[str, Any], loss: float) -> str:
    rows = [r for r in summary.get("rows", ()) if r["granularity"] == GRANULARITIES[0]]
    if not rows or any(r["value"] is None for r in rows):
        return ""
    rises = ", ".join(f"by {number(r['value'], 2)} at {r['bits']} bits" for r in rows)
    return f"Rounding the weights, with a scale for each channel, raises the loss {rises}."


@measure(
    "quantization_rise",
    label="Quantization rise",
    meaning="Rise of the loss where the weights are rounded to few bits (8, or the first width asked for), with "
    "a scale for each channel. Smaller is flatter.",
    unit="loss",
    flat="small",
    says=_says,
)
def quantization_rise(
    problem: Problem,
    *,
    bits: tuple[int, ...] = (8, 6, 4, 3),
    subsets: int = 0,
    chunk_size: int | None = None,
    seed: int = 0,
) -> QuantizationRise:
    """Rise of the loss under round-to-nearest quantization of the weights, beside its quadratic prediction.

    L(w + e) - L(w), e = Q(w) - w; Q(w)_i = s round(w_i / s), s = max |w| / (2^(b-1) - 1) over the tensor or over the
    channel: symmetric, so that 0 stays 0, with 2^b - 1 levels; ties go to the even one. Beside it g'e and e'He / 2.
    Rounded are the weights of layers (tensors with an output dimension: linear maps, convolutions, embeddings), a tied
    one once. Biases, scales and shifts of normalization layers, tokens and running statistics stay as they are: they
    are few, and inference keeps them in high precision. BatchNorm is not folded into the layer before it.
    Per channel the relative error of a row does not depend on its scale: rescaling the units of a network multiplies
    rows by factors, which that rounding follows, and columns, which it does not, so that neither kind is invariant.

    Args:
        bits: widths, one or several, each 2 to 16.
        subsets: 95% confidence interval from this many disjoint random subsets of the examples; 0 for none.
        chunk_size: examples differentiated at once; None chooses.
        seed: seed of the division into subsets.

    Returns:
        QuantizationRise with `value`, `rise` (granularity, bits), `predicted`.

    Raises:
        InputError: a width out of range, no weight to round, subsets larger than the number of examples, weights or
            loss at w not finite, a model without second derivative.

    Cost: 1 forward + 1 backward pass, then 1 forward and 1 Hessian-vector product a width and granularity; forward
    passes twice over with subsets.
    Source: round-to-nearest as the baseline of Frantar 2023 (arXiv 2210.17323); the quadratic prediction: LeCun 1990,
    Nagel 2020 (arXiv 2004.10568), eq. 4.

    Example:
        >>> import landscape, torch
        >>> line = torch.nn.Linear(2, 1, bias=False, dtype=torch.float64)
        >>> line.weight.data = torch.tensor([[3.0, 1.4]], dtype=torch.float64)  # 3 bits: multiples of 3 / 3, so (3, 1)
        >>> x = torch.eye(2, dtype=torch.float64)
        >>> problem = landscape.Problem(line, torch.nn.MSELoss(), [(x, x @ line.weight.data.T)])
        >>> rounded = landscape.quantization_rise(problem, bits=3)  # L = ||e||^2 / 2, e = (0, -0.4)
        >>> round(rounded.value, 6), rounded.predicted.round(6).tolist()
        (0.08, [[0.08], [0.08]])
    """
    widths = _widths(bits)
    check_division(problem, None, subsets)
    check_weights(problem)
    slots = [s for s in problem.parameters if s.kind == "weight"]
    if not slots:
        raise InputError(
            "no parameter is the weight of a layer: biases, normalization and tokens are not rounded; choose others"
        )
    loss, gradient = problem.loss_and_gradient()
    check_loss(loss)
    operator = operators.hessian(problem, chunk_size=chunk_size)
    parts = [(s, s.loss()) for s in disjoint_subsets(problem, subsets, seed)] if subsets else []
    shape = (len(GRANULARITIES), len(widths))
    rows: list[list[Tensor]] = []
    with Bar("quantization", shape[0] * shape[1]) as bar:
        for granularity in GRANULARITIES:
            for width in widths:
                q = quantized(problem, width, granularity)
                e = q - problem.weights
                second = dot(e, operator.matvec(e)) / 2
                rows.append([problem.loss(q) - loss, dot(gradient, e), second, norm(e)])
                rows[-1] += [part.loss(q) - at for part, at in parts]
                bar.advance()
    table = torch.stack([torch.stack(row) for row in rows]).cpu().numpy().T.reshape(-1, *shape)
    rise, over_subsets = table[0], table[4:] if subsets else None
    rounded_weights = sum(s.shape.numel() for s in slots)
    return QuantizationRise(
        bits=np.array(widths),
        granularities=list(GRANULARITIES),
        rise=rise,
        first_order=table[1],
        second_order=table[2],
        error_norm=table[3],
        loss=float(loss),
        quantized=rounded_weights,
        kept=problem.dimension - rounded_weights,
        subsets=over_subsets,
        interval=None if over_subsets is None else interval_around(rise, over_subsets),
        resolution=resolution(problem, float(loss)),
        arguments={"bits": widths},
        provenance=operator.facts(),
    )


def quantized(problem: Problem, bits: int, granularity: str = "channel") -> Tensor:
    """The weights of the Problem, (d,), those of layers rounded to nearest; see `quantization_rise`."""
    pieces = zip(problem.parameters, problem.parameters.unflatten(problem.weights), strict=True)
    return problem.parameters.flatten(
        [_rounded(slot, t, bits, granularity) if slot.kind == "weight" else t for slot, t in pieces]
    )


def _rounded(slot: Slot, tensor: Tensor, bits: int, granularity: str) -> Tensor:
    axes = [a for a in range(tensor.dim()) if granularity == "tensor" or a != slot.filter_axis]
    levels = 2 ** (bits - 1) - 1
    scale = tensor.abs().amax(dim=axes, keepdim=True) / levels
    # A channel of zeros has no scale, and stays; a subnormal one would overflow in the quotient.
    safe = torch.where(scale > torch.finfo(scale.dtype).tiny, scale, torch.ones_like(scale))
    return torch.where(scale > torch.finfo(scale.dtype).tiny, torch.round(tensor / safe) * safe, tensor)


def _widths(bits: int | Sequence[int]) -> tuple[int, ...]:
    widths = tuple(bits) if isinstance(bits, Sequence) else (bits,)
    for b in widths:
        if not 2 <= positive("bits", b) <= _MOST_BITS:
            raise InputError(f"bits={b}: a width of 2 to {_MOST_BITS} bits is needed")
    if not widths:
        raise InputError("no width was given: give bits one number or several")
    return tuple(int(b) for b in widths)
