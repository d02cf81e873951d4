"""Soft rank of the Hessian, effective dimension, and Takeuchi's criterion."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape import random
from landscape.curvature import damped, operators, scores
from landscape.errors import InputError, unknown
from landscape.formatting import number
from landscape.measure import measure
from landscape.problem.problem import Problem
from landscape.results.result import Result, array
from landscape.sharpness.checks import check_weights
from landscape.statistics import half_width

MATRICES = ("auto", "hessian", "ggn", "fisher")
_NEGATIVE = 0.1
"""How far below 0 an eigenvalue may lie, in units of the damping: x / (x + damping) is then above -1/9."""
_LARGEST_DENSE = 4096


@dataclass(frozen=True, kw_only=True)
class SoftRank(Result):
    """How many directions the loss determines, and what that says of the generalization gap.

    Attributes:
        value: tr A (A + damping I)^-1.
        interval: (bound,) 95% confidence interval: Student's t over the probes, with the bounds of the quadrature; the
            value twice where it is exact.
        exact: whether all eigenvalues were computed; nothing is sampled then.
        matrix: "hessian", "ggn" or "fisher": which A.
        obstacle: why it is not the Hessian where that was preferred; None where it is, or another was asked for.
        effective_dimension: tr n A (n A + precision I)^-1: the number of parameters that n examples determine better
            than a Gaussian prior of that precision does.
        effective_dimension_interval: (bound,) likewise.
        takeuchi: tr C (A + damping I)^-1, C the covariance of the examples' gradients; None where the loss knows no
            single examples, or it was not asked for.
        takeuchi_interval: (bound,) likewise.
        takeuchi_obstacle: why it is missing; None where it is not, or was not asked for.
        gap: takeuchi / n, the estimate of the expected loss on new examples minus that on these.
        smallest: smallest eigenvalue, or where not all are known the smallest Ritz value.
        negative: part of `value` that negative eigenvalues make, at most 0.
        hvps: products with A.
    """

    value: float
    interval: np.ndarray = array("bound")
    exact: bool
    matrix: str
    obstacle: str | None = None
    effective_dimension: float
    effective_dimension_interval: np.ndarray = array("bound")
    takeuchi: float | None = None
    takeuchi_interval: np.ndarray | None = array("bound", default=None)
    takeuchi_obstacle: str | None = None
    gap: float | None = None
    smallest: float
    negative: float
    hvps: int

    def summary(self) -> dict[str, Any]:
        """Arguments, every number, and the ends of the interval as `low` and `high`."""
        entry = super().summary()
        low, high = entry.pop("interval")
        return entry | {"low": low, "high": high}


def _says(summary: Mapping[str, Any], loss: float) -> str:
    value, gap = summary.get("value"), summary.get("gap")
    if not isinstance(value, int | float) or summary.get("matrix") != "hessian":
        return ""
    more = f" Takeuchi's estimate of the generalization gap is {number(gap, 2)}." if isinstance(gap, float) else ""
    return f"About {number(value, 3)} directions are curved more than the damping.{more}"


@measure(
    "soft_rank",
    label="Soft rank of the {matrix} matrix",
    meaning="Number of directions in which the loss is curved more than the damping {damping}, each counted by its "
    "share λ / (λ + damping). Smaller is flatter.",
    unit="directions",
    flat="small",
    says=_says,
)
def soft_rank(
    problem: Problem,
    w: Tensor | None = None,
    *,
    damping: float = 1e-3,
    precision: float = 1.0,
    matrix: str = "auto",
    probes: int = 10,
    steps: int = 30,
    takeuchi: bool = True,
    chunk_size: int | None = None,
    seed: int = 0,
) -> SoftRank:
    """Soft rank of the Hessian, tr H (H + damping I)^-1, the effective dimension and Takeuchi's criterion.

    The soft rank counts the eigenvalues of H, each by lambda / (lambda + damping). For least squares with a penalty it
    is the number of degrees of freedom: mean squared error has H = 2 X'X / n, so that ridge regression's alpha ||w||^2
    beside the sum of squares is damping = 2 alpha / n. The effective dimension is the soft rank at precision / n
    (MacKay's number of well-determined parameters).
    Takeuchi: w minimizes L_n + damping ||w||^2 / 2 on n examples; then to first order E[L(w) - L_n(w)] = tr C (H +
    damping I)^-1 / n, C the covariance of the examples' gradients about their mean (the mean is -damping w there, not
    0). Where the loss is -log p of a calibrated model, C = H up to that, and the gap is the soft rank / n; elsewhere
    only the criterion holds. It is no more than that without the penalty, or away from the minimum.

    n is the number of examples that have a part in L: those whose labels are all ignored, or of weight 0, have none.
    An objective function shows no labels: with one all examples count.

    A negative eigenvalue counts negatively, and one near -damping without bound: where the smallest is below -0.1
    times the damping (or precision / n, if that is less) "hessian" is refused, and "auto" takes the Gauss-Newton
    matrix, which has none, and says so.
    Where `probes` x `steps` products suffice for all d unit vectors (d up to 4,096) all eigenvalues are computed. Else
    Lanczos from each probe gives z'(A + damping I)^-1 z between two bounds (Gauss and Gauss-Radau quadrature), the
    interval holds these and the spread over probes. For an indefinite Hessian the second is a bound as far as the
    smallest Ritz value is the smallest eigenvalue.

    Args:
        problem: L.
        w: where (default: the weights of the Problem).
        damping: > 0, in units of curvature: the weight decay that the network was trained with, or the noise floor.
        precision: of the Gaussian prior of the effective dimension, > 0.
        matrix: "auto", "hessian", "ggn" or "fisher".
        probes: random vectors, at least 4; as many again for Takeuchi's criterion.
        steps: Lanczos steps from each.
        takeuchi: compute Takeuchi's criterion too.
        chunk_size: examples differentiated at once; None chooses.
        seed: draws the probes.

    Returns:
        SoftRank with `value`, `interval`, `effective_dimension`, `takeuchi`, `gap`.

    Raises:
        InputError: damping or precision not positive, fewer than 4 probes, steps < 1, an eigenvalue too far below 0
            for "hessian", or below 0 by more than rounding for another matrix; for the
            Gauss-Newton matrix outputs that are no (examples, outputs) matrix; labels of -100 under a loss that does
            not show whether it ignores them.

    Cost: at most probes x steps Hessian-vector products, and as many again, with `probes` forward + backward passes,
    for Takeuchi's criterion (at most 64 backward passes where all eigenvalues are computed); twice that where "auto"
    turns to the Gauss-Newton matrix.
    Source: Shoham, Mor-Yosef and Avron 2025 (arXiv 2506.17809); effective dimension: MacKay 1992, Maddox 2020 (arXiv
    2003.02139); Takeuchi 1976; bounds: Golub and Meurant 2010. Differs: C is centered, since a penalty leaves a mean
    gradient; no Kronecker factors.

    Example:
        >>> import landscape, torch
        >>> line = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
        >>> x, _ = torch.ones(4, 1, dtype=torch.float64), torch.nn.init.ones_(line.weight)
        >>> problem = landscape.Problem(line, torch.nn.MSELoss(), [(x, 2 * x)])  # L(w) = (w - 2)^2 at w = 1
        >>> rank = landscape.soft_rank(problem, damping=2.0)
        >>> round(rank.value, 6), round(rank.effective_dimension, 6)  # 2 / (2 + 2), 2 / (2 + 1 / 4)
        (0.5, 0.888889)
    """
    _check(damping, precision, matrix, probes, steps)
    check_weights(problem)
    plan, n = _Plan(problem, w, probes, steps, chunk_size, seed), problem.contributing()
    kind, obstacle = ("hessian" if matrix == "auto" else matrix), None
    spectrum = plan.spectrum(kind)
    spent, least = spectrum.products, min(damping, precision / n)
    if kind == "hessian" and spectrum.smallest < -_NEGATIVE * least:
        words = (
            f"the Hessian has an eigenvalue {spectrum.smallest:.3g}, and lambda / (lambda + c) means nothing near -c = "
            f"{-least:.3g}"
        )
        if matrix == "hessian":
            enough = -spectrum.smallest / _NEGATIVE
            raise InputError(f'{words}: take matrix="ggn", or damping > {enough:.3g} and precision > {enough * n:.3g}')
        kind, obstacle = "ggn", words
        spectrum = plan.spectrum(kind)
        spent += spectrum.products
    if spectrum.smallest < -_NEGATIVE * least:
        raise InputError(
            f"the {kind} matrix has an eigenvalue {spectrum.smallest:.3g}, by rounding or as the loss is not convex in "
            f"the outputs: take a damping (and precision / n) above {-spectrum.smallest / _NEGATIVE:.3g}, or float64"
        )
    rank, dimension = spectrum.rank(damping), spectrum.rank(precision / n)
    criterion, missing = plan.takeuchi(spectrum, damping) if takeuchi else (None, None)
    return SoftRank(
        value=rank.value,
        interval=rank.interval,
        exact=spectrum.exact,
        matrix=kind,
        obstacle=obstacle,
        effective_dimension=dimension.value,
        effective_dimension_interval=dimension.interval,
        takeuchi=None if criterion is None else criterion.value,
        takeuchi_interval=None if criterion is None else criterion.interval,
        takeuchi_obstacle=missing,
        gap=None if criterion is None else criterion.value / n,
        smallest=spectrum.smallest,
        negative=spectrum.negative(damping),
        hvps=spent + (criterion.products if criterion else 0),
        arguments={"matrix": matrix},
        provenance=spectrum.operator.facts(),
    )


@dataclass(frozen=True)
class _Number:
    """A number with its interval, (2,), and the products that it took."""

    value: float
    interval: np.ndarray
    products: int = 0

    @classmethod
    def between(cls, bounds: np.ndarray, products: int = 0) -> _Number:
        """The mean over probes of what lies between these bounds, (2, probes); Student's t widens both ends."""
        lower, upper = bounds
        ends = np.array([lower.mean() - half_width(lower), upper.mean() + half_width(upper)])
        return cls(float((lower + upper).mean() / 2), ends, products)

    @classmethod
    def exactly(cls, value: float) -> _Number:
        return cls(value, np.array([value, value]))


@dataclass(frozen=True)
class _Dense:
    """All eigenvalues."""

    operator: operators.Operator
    values: np.ndarray
    vectors: np.ndarray
    products: int
    exact: bool = field(default=True, init=False)

    @property
    def smallest(self) -> float:
        return float(self.values[0])

    def rank(self, damping: float) -> _Number:
        # Eigenvalues of a singular matrix are rounding on both sides of 0; the pole lies far below.
        return _Number.exactly(float((self.values / (self.values + damping)).sum()))

    def negative(self, damping: float) -> float:
        below = np.minimum(self.values, 0.0)
        return float((below / (below + damping)).sum())


@dataclass(frozen=True)
class _Sampled:
    """Lanczos from Rademacher vectors."""

    operator: operators.Operator
    forms: damped.Forms
    exact: bool = field(default=False, init=False)

    @property
    def products(self) -> int:
        return self.forms.products

    @property
    def smallest(self) -> float:
        return self.forms.smallest

    @property
    def floor(self) -> float:
        """A little below the smallest Ritz value, at or below 0: every Gauss-Newton matrix's smallest is 0."""
        slack = 10 * torch.finfo(self.operator.like.dtype).eps * max(abs(self.forms.largest), abs(self.smallest))
        return min(self.smallest, 0.0) - slack

    def rank(self, damping: float) -> _Number:
        inverse = self.forms.inverse(damping, max(self.floor, -0.5 * damping))
        return _Number.between((self.operator.dimension - damping * inverse)[::-1])

    def negative(self, damping: float) -> float:
        return self.forms.rational(damping)


@dataclass(frozen=True)
class _Plan:
    problem: Problem
    w: Tensor | None
    probes: int
    steps: int
    chunk_size: int | None
    seed: int

    def spectrum(self, matrix: str) -> _Dense | _Sampled:
        """All eigenvalues where the products suffice, else quadratic forms of random vectors."""
        operator = operators.build(self.problem, matrix, self.w, chunk_size=self.chunk_size)
        d = operator.dimension
        if d <= min(self.probes * self.steps, _LARGEST_DENSE):
            dense = operator.dense().double()
            values, vectors = torch.linalg.eigh((dense + dense.mT) / 2)
            return _Dense(operator, values.cpu().numpy(), vectors.cpu().numpy(), d)
        generator = random.stream(self.seed, "soft rank")
        starts = (random.rademacher(operator.like, generator) for _ in range(self.probes))
        return _Sampled(operator, self._forms(operator, starts))

    def takeuchi(self, spectrum: _Dense | _Sampled, damping: float) -> tuple[_Number | None, str | None]:
        """Tr C (A + damping I)^-1, or why it cannot be had."""
        try:
            if isinstance(spectrum, _Dense):
                c = scores.covariance(self.problem, self.w).cpu().numpy()
                along = np.einsum("ia,ij,ja->a", spectrum.vectors, c, spectrum.vectors, optimize=True)
                return _Number.exactly(float((along / (spectrum.values + damping)).sum())), None
            generator = random.stream(self.seed, "scores")
            starts = scores.combinations(self.problem, self.w, self.probes, generator)
            forms = self._forms(spectrum.operator, starts)
        except InputError as error:
            return None, str(error)
        floor = max(min(spectrum.floor, forms.smallest), -0.5 * damping)
        return _Number.between(forms.inverse(damping, floor), forms.products), None

    def _forms(self, operator: operators.Operator, starts: Any) -> damped.Forms:
        generator = random.stream(self.seed, "Lanczos")
        return damped.forms(
            operator.matvec, operator.like, starts, count=self.probes, steps=self.steps, generator=generator
        )


def _check(damping: float, precision: float, matrix: str, probes: int, steps: int) -> None:
    for name, value in (("damping", damping), ("precision", precision)):
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"{name}={value:g}: a positive finite number is needed")
    if matrix not in MATRICES:
        raise unknown("matrix", matrix, MATRICES)
    if probes < 4:
        raise InputError(f"probes={probes}: at least 4 are needed for an interval")
    if steps < 1:
        raise InputError(f"steps={steps}: at least 1 Lanczos step is needed")
