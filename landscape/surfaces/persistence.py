"""Minima and saddles of a surface or a path, how persistent each is, and what noise of the same kind would give."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from landscape.errors import InputError
from landscape.results.result import Result, array, plain
from landscape.surfaces import null_models
from landscape.surfaces.merge_tree import MergeTree, merge_tree
from landscape.surfaces.paths import LossPath
from landscape.surfaces.result import Surface

RANKS = 10
"""Largest persistences that are kept of every surrogate."""


@dataclass(frozen=True, kw_only=True)
class Persistence(Result):
    """The minima of a loss on a grid, each with the saddle over which its basin joins that of a deeper one.

    Attributes:
        birth: (minimum,) loss at the minimum. The lowest comes first, then the most persistent.
        death: (minimum,) loss at the saddle; inf for the lowest, and where infinite losses lie all around.
        minima: (minimum, direction) coordinates.
        saddles: (minimum, direction); nan where there is none.
        parent: (minimum,) number of the deeper minimum whose basin it joins; -1 for none.
        sampling: (minimum,) persistence that the choice of examples alone can make or unmake there, 95%; nan unknown.
        rounding: (minimum,) the same of the arithmetic: 20 units in the last place.
        surrogates: (draw, rank) largest persistences of random surfaces of the same spectrum; 0 where there are fewer.
        unit: of the coordinates.
        facts: points, examples, spectrum: the share of the variance around the trend.
        checks: reasons not to believe the surface.
    """

    birth: np.ndarray = array("minimum")
    death: np.ndarray = array("minimum")
    minima: np.ndarray = array("minimum", "direction")
    saddles: np.ndarray = array("minimum", "direction")
    parent: np.ndarray = array("minimum")
    sampling: np.ndarray = array("minimum")
    rounding: np.ndarray = array("minimum")
    surrogates: np.ndarray = array("draw", "rank")
    unit: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    checks: list[dict[str, Any]] = field(default_factory=list)

    @property
    def persistence(self) -> np.ndarray:
        """(minimum,) death - birth."""
        return self.death - self.birth

    @property
    def noise(self) -> np.ndarray:
        """(minimum,) persistence that rounding and, where it is known, the choice of examples can make."""
        return self.rounding + np.nan_to_num(self.sampling)

    @property
    def stands_out(self) -> np.ndarray:
        """(minimum,) whether a minimum is more persistent than noise explains; true of the lowest, which never dies."""
        return self.persistence > self.noise

    @property
    def smooth(self) -> np.ndarray:
        """(rank,) 95% quantile over the surrogates of the largest persistence, the second largest, ..."""
        return null_models.upper(self.surrogates) if len(self.surrogates) else np.full(RANKS, np.nan)

    def saddle_height(self, i: int, j: int) -> float:
        """The lowest level at which a path between minima i and j stays below it: the largest death on the way."""
        ways = [self._way(i), self._way(j)]
        common = next((m for m, _ in ways[0] if m in dict(ways[1])), None)
        if common is None:
            return math.inf
        return max(dict(way)[common] for way in ways) if i != j else float(self.birth[i])

    def _way(self, i: int) -> list[tuple[int, float]]:
        """Minima from i down the tree, each with the largest death before it."""
        way, height = [(i, -math.inf)], -math.inf
        while self.parent[i] >= 0:
            height, i = max(height, float(self.death[i])), int(self.parent[i])
            way.append((i, height))
        return way

    def caption(self) -> str:
        """What must be said under a figure."""
        sampled = np.isfinite(self.sampling).any()
        parts = [
            f"{len(self.birth)} minima of {self.facts['points']:,} points",
            f"noise: {'the choice of examples (95%) and rounding' if sampled else 'rounding alone'}",
            f"{len(self.surrogates)} random surfaces of the same spectrum" if len(self.surrogates) else "",
        ]
        return "; ".join(p for p in parts if p)

    @property
    def warnings(self) -> list[str]:
        """Reasons not to believe the picture."""
        return [c["text"] for c in self.checks if not c["ok"]]


def persistence(result: Surface | LossPath, *, surrogates: int = 99, seed: int = 0) -> Persistence:
    """Sublevel-set persistence of a surface or a path: its minima, their saddles, and two null models beside them.

    While a level rises, every minimum starts a basin; at a saddle two meet, and the one with the higher minimum ends.
    Its persistence is the height that must be climbed to leave it for a deeper one. Between the points the loss is
    taken as (bi)linear. A saddle within the plane bounds the height that separates two minima in the whole space from
    above, up to the error of that interpolation.

    *Noise*: L is a mean over n examples, computed in finite precision. The error fields e_b of other samples
    (`noise_draws` of `landscape.surface`) bound what they can change: by the stability theorem a minimum that dies at h
    outlives any noise e with persistence > 2 max |e| over the points where L or L + e is at most h. `sampling` is the
    95% quantile of that bound over the draws, so that a minimum above it is one of the expected loss, too. A single
    minimum is tested: of hundreds some pass by chance.

    *A smooth surface*: random surfaces that have the quadratic trend of this one and, around it, its spectrum with
    random phases. They do not ask whether a minimum is real, but whether it is more than the roughness of the surface
    amounts to anyhow.

    Args:
        result: a finished surface or a path, computed or loaded.
        surrogates: random surfaces; 0 for none. 99 give a test at 1%.
        seed: of their phases.

    Raises:
        InputError: points that are not computed, no finite loss, another kind of result.

    Cost: no passes; a union-find over the grid for the surface and for each surrogate (41 x 41: 10 ms each).
    Source: Edelsbrunner, Letscher and Zomorodian 2002; Cohen-Steiner, Edelsbrunner and Harer 2007 (stability); Fasy et
    al. 2014, arXiv 1303.7117 (confidence sets by resampling); Theiler et al. 1992 (random phases).
    """
    started = time.monotonic()
    axes = _axes(result)
    if surrogates < 0:
        raise InputError(f"surrogates={surrogates}: a number of random surfaces, 0 or more, is needed")
    tree = merge_tree(result.loss)
    drawn, share = null_models.surrogates(result.loss, surrogates, seed)
    largest = np.array([_largest(merge_tree(s)) for s in drawn]).reshape(-1, RANKS)
    facts = {"points": int(result.loss.size), "examples": result.provenance.get("examples"), "spectrum": share}
    places = np.stack(np.unravel_index(tree.minima, result.loss.shape), -1)
    return Persistence(
        birth=tree.birth,
        death=tree.death,
        minima=_coordinates(places.astype(float), axes),
        saddles=_coordinates(tree.saddles, axes),
        parent=tree.parents,
        sampling=null_models.sampling(result.loss, result.sampling_noise, tree.death),
        rounding=null_models.rounding(result, tree),
        surrogates=largest,
        unit=result.unit if isinstance(result, Surface) else "t",
        facts=facts,
        checks=result.checks,
        label="Minima and saddles",
        arguments=plain({"surrogates": surrogates, "seed": seed}),
        seconds=time.monotonic() - started,
        provenance=result.provenance,
    )


def _axes(result: Surface | LossPath) -> tuple[np.ndarray, ...]:
    if not isinstance(result, Surface | LossPath):
        raise InputError(f"persistence needs a Surface or a LossPath, received {type(result).__name__}")
    if isinstance(result, Surface) and not result.done.all():
        missing = np.count_nonzero(~result.done)
        raise InputError(f"{missing:,} of {result.done.size:,} points are not computed: resume the surface first")
    if not np.isfinite(result.loss).any():
        raise InputError("no point has a finite loss: choose a smaller radius")
    return result.axes if isinstance(result, Surface) else (result.t,)


def _coordinates(places: np.ndarray, axes: tuple[np.ndarray, ...]) -> np.ndarray:
    """Coordinates of fractional indices (minimum, axis): linear between the points."""
    return np.stack([np.interp(p, np.arange(len(a)), a) for p, a in zip(places.T, axes, strict=True)], -1)


def _largest(tree: MergeTree) -> np.ndarray:
    """(RANKS,) largest finite persistences of a surrogate, 0 where it has fewer."""
    heights = np.sort((tree.death - tree.birth)[np.isfinite(tree.death)])[::-1][:RANKS]
    return np.pad(heights, (0, RANKS - len(heights)))
