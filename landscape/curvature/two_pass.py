"""Extreme eigenpairs where no basis fits: Lanczos twice over, a pair at a time.

The first pass of a pair gives its value and its coefficients in Lanczos vectors that are forgotten, the second makes
these again and adds them up, one more product measures the residual. What is found is locked; the next pair, and what
was missed, come from the complement. One product in all sees whether the matrix is symmetric. Held are the k pairs and
three vectors, what a product takes among them.

Measured against thick restarts of a basis of four (docs/performance.md): these take half of the products at the upper
end of a trained network's Hessian, and 1.4 to 5 times as many, or more than 500, at its dense lower end. LOBPCG, which
recurs on three vectors, needs their products beside them, or three products for each step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from landscape import random
from landscape.ball import vectors
from landscape.ball.spread import plain
from landscape.ball.vectors import dot, dots, norm
from landscape.curvature.factorization import joint, symmetric
from landscape.curvature.missed import CHANCE, SMALL, USUAL
from landscape.curvature.three_term import COLUMNS, ThreeTerm, product
from landscape.curvature.wanted import Eigenpairs, Fence, Request, wanted
from landscape.progress import Bar

if TYPE_CHECKING:
    from landscape.curvature.operators import Operator

Draw = Callable[[], Tensor]


class TwoPass:
    """Eigenpairs of a request, found and locked one after the other.

    Args:
        request: what is wanted.
        operator: A.
        generator: draws start vectors.
        bar: shows the products.
    """

    def __init__(self, request: Request, operator: Operator, generator: torch.Generator, bar: Bar) -> None:
        self.request, self.operator, self.generator, self.bar = request, operator, generator, bar
        like = operator.like
        self.wanted = min(request.pairs, operator.dimension)
        self.rows = like.new_empty((0, like.numel()))
        self.values, self.rests, self.signs = np.zeros(0), np.zeros(0), list[int]()
        self.scale, self.products = 0.0, 0
        self.asymmetry: float | None = None
        self.settled, self.exhausted = True, False

    def pairs(self, draw: Draw, verify: bool) -> Eigenpairs:
        """The wanted pairs, and how probably one is missed; `draw` gives start vectors for them."""
        while len(self.values) < self.wanted and self._left() >= 2:
            self._add(self._repeatable(draw))
        chance, enough = self._completed(verify)
        converged = self._converged()
        order = wanted(self.values, self.request.k, self.request.which)
        self._rotate(np.eye(len(order))[:, order])
        return Eigenpairs(
            self.values[order],
            self.rows[: len(order)],
            self._bounds()[order],
            self.products,
            converged and chance is not None and chance <= enough,
            self.request.rounding(self.scale),
            chance,
            basis=False,
        )

    # -- pairs ---------------------------------------------------------------------------------------------------------

    def _add(self, draw: Draw, level: float = -math.inf) -> None:
        """One more pair, at least `level` far out, from the complement of those that are locked."""
        found = len(self.values)
        sign = self._sign()
        state = ThreeTerm(self.operator, draw, self.rows[:found], self.scale)
        # Every pair that is still to come takes two products at least, the look at the symmetry one.
        most = (self._left() - 2 * (self.wanted - found - 1) - (self.asymmetry is None)) // 2
        s, settled = self._converge(state, sign, level, max(most, 1))
        self.settled &= settled
        self.exhausted |= state.exhausted
        self.scale = state.scale
        if not len(self.rows):
            self.rows = self.rows.new_empty((self.wanted, self.rows.shape[1]))
        state.combine(s, self.rows[found])
        self.products += state.products
        self.signs.append(sign)
        self._lock(found)
        if found + 1 == self.wanted and self.settled:
            self._measure_failing()

    def _sign(self) -> int:
        """Of the end where the next pair is looked for; 0: either."""
        if self.request.which == "BE":
            return 1 if self.signs.count(1) <= self.signs.count(-1) else -1
        return {"LA": 1, "SA": -1, "LM": 0}[self.request.which]

    def _converge(self, state: ThreeTerm, sign: int, level: float, most: int) -> tuple[np.ndarray, bool]:
        """Coefficients of the outermost Ritz vector once its residual is small, and whether it became so."""
        share = 1.0 if self.wanted == 1 else 0.5  # the rest is left to what rotations mix in
        while True:
            state.step()
            self.bar.advance()
            values, vectors, residuals = state.ritz()
            outward = sign * values if sign else np.abs(values)
            i = int(np.argmax(outward))
            allowed = self.request.allowed(values[i : i + 1], state.scale)[0] - self.request.rounding(state.scale) / 2
            # In a cluster a value settles before it is as far out as the look saw one.
            settled = bool(residuals[i] <= share * allowed and outward[i] >= level) or state.exhausted
            if settled or len(values) >= most:
                return vectors[:, i], settled

    def _lock(self, i: int) -> None:
        """Value and residual of row i from a product, and Rayleigh-Ritz with the pairs before: clusters need it."""
        before = self.rows[:i]
        value, y = self._residual(i)
        coupling = dots(before, y, COLUMNS).cpu().numpy() if i else np.zeros(0)
        if i:
            y.addmv_(before.mT, torch.from_numpy(coupling).to(y), alpha=-1.0)
        # What the coupling explains of the others' residuals is no longer an error; roundings that are small beside a
        # residual are not beside what is left of it.
        floor = self.request.rounding(self.scale) / 2
        left = np.sqrt(np.maximum((self.rests + floor) ** 2 - coupling**2, 0))
        explained = np.maximum(left - floor, 0)
        matrix = np.diag([*self.values, value])
        matrix[:i, i] = matrix[i, :i] = coupling
        self.values, q = np.linalg.eigh(matrix)
        self.signs.sort()  # as the values, which ascend
        self.rests = np.abs(q).T @ np.array([*explained, float(norm(y))])
        self._rotate(q)
        if self.asymmetry is None and self._left() > 2 * (self.wanted - 1):
            z = random.normal(self.operator.like, self.generator)
            z.div_(norm(z))
            forth = value * float(dot(z, self.rows[0])) + float(dot(z, y))
            del y
            self._compare(z, forth)

    def _compare(self, z: Tensor, forth: float) -> None:
        """See whether the products are a symmetric matrix's: <z, A x> beside <x, A z>, x the first row.

        ||(A - A') x|| is about sqrt(d) times their difference for a random z of unit length, and ||A|| at most about
        sqrt(d) ||A z||, whatever the recurrence made of products that are not symmetric. Cost: one product.
        """
        y, root = self.operator.matvec(z), math.sqrt(self.operator.dimension)
        back = float(dot(self.rows[0], y))
        self.products += 1
        self.bar.advance()
        self.asymmetry = root * abs(back - forth)
        self.settled &= symmetric(self.asymmetry, min(self.scale, root * float(norm(y))), self.operator.cause)

    def _residual(self, i: int) -> tuple[float, Tensor]:
        """<x, A x> and A x - <x, A x> x of row i."""
        x = self.rows[i]
        y = product(self.operator, x)
        self.products += 1
        self.bar.advance()
        value = float(dot(x, y))
        return value, y.add_(x, alpha=-value)

    def _measure_failing(self) -> None:
        """Residuals from a product each where they seem too large: what a rotation bounds is often far smaller."""
        failing = np.flatnonzero(self._bounds() > self.request.allowed(self.values, self.scale))
        for i in failing[: self._left()]:
            self.values[i], residual = self._residual(i)
            self.rests[i] = float(norm(residual))

    def _rotate(self, q: np.ndarray) -> None:
        """The first rows become their combinations by the columns of q; in place."""
        if np.array_equal(q, np.eye(len(q))):
            return
        weights = torch.from_numpy(np.ascontiguousarray(q.T)).to(self.rows.device)
        for columns in vectors.pieces(self.rows.shape[1], COLUMNS):
            part = plain(self.rows)[: len(q), columns]
            part.copy_(weights @ part.double())

    def _bounds(self) -> np.ndarray:
        return self.request.bounds(self.rests, self.asymmetry or 0.0, self.scale)

    def _converged(self) -> bool:
        complete = len(self.values) == self.wanted and self.settled
        return complete and self.request.met(self.values, self._bounds(), self.scale)

    # -- what was missed -----------------------------------------------------------------------------------------------

    def _completed(self, verify: bool) -> tuple[float | None, float]:
        """Probability that a pair is missed, and which is enough; what a look sees replaces the last wanted pair."""
        thorough = verify or self.exhausted or self.operator.dimension <= SMALL
        enough, chance, looks = CHANCE if thorough else USUAL, None, list[float]()
        while self._converged() and (chance is None or chance > enough):
            if self.wanted == self.operator.dimension:
                return 0.0, enough
            if self._left() < 1:
                break
            draw = self._repeatable(lambda: random.normal(self.operator.like, self.generator))
            ends = self.values[wanted(self.values, self.request.k, self.request.which)]
            fences = self.request.fences(ends, self.scale, self.operator.dimension)
            overlooked, missed = self._look(draw, fences, enough, looks)
            looks.append(overlooked)
            chance = joint(looks)
            if missed is not None:
                enough, chance, looks = CHANCE, None, []
                self._replace(missed, draw)
        return chance if self._converged() else None, enough

    def _look(self, draw: Draw, fences: list[Fence], enough: float, before: list[float]) -> tuple[float, Fence | None]:
        """Probability that an eigenvalue beyond a fence is overlooked, and the fence beyond which there is one.

        Ends where that is `enough` together with the looks before.
        """
        state = ThreeTerm(self.operator, draw, self.rows, self.scale)
        left = self._left()
        while True:
            state.step()
            self.bar.advance()
            self.products += 1
            values = state.ritz()[0]
            beyond = next((f for f in fences if np.any(f.sign * values >= f.level)), None)
            chance = max(state.chance(f.sign * f.excluded) for f in fences)
            done = joint([*before, chance]) <= enough
            if beyond is not None or done or state.exhausted or state.products >= left:
                return chance, beyond

    def _replace(self, fence: Fence, draw: Draw) -> None:
        """Find the wanted pair that is the least far out on this side anew, from a start that saw beyond it."""
        if self._left() < 2:
            self.settled = False
            return
        if self.request.which == "LM":
            last = int(np.argmin(np.abs(self.values)))
        else:
            side = [i for i in range(self.wanted) if self.request.which != "BE" or self.signs[i] == fence.sign]
            last = min(side, key=lambda i: fence.sign * self.values[i])
        rest = [i for i in range(self.wanted) if i != last]
        self._rotate(np.eye(self.wanted)[:, [*rest, last]])
        self.values, self.rests = self.values[rest], self.rests[rest]
        self.signs = [self.signs[i] for i in rest]
        self._add(draw, fence.level)

    def _left(self) -> int:
        return self.request.max_products - self.products

    def _repeatable(self, draw: Draw) -> Draw:
        """Draws the same vector at every call: the generator is set back."""
        state = self.generator.get_state()

        def again() -> Tensor:
            self.generator.set_state(state)
            return draw()

        return again
