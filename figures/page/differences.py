"""Differences between checkpoints with intervals: paired, since all are measured on the same examples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from landscape import statistics

if TYPE_CHECKING:
    from figures.page.analysis import Analysis
    from figures.page.rows import Differences
    from landscape.results.result import Result


def paired(analyses: Sequence[Analysis]) -> Differences:
    """Each checkpoint's difference from the first, with a 95% interval over draws of the examples.

    Loss and accuracy: of the per-example differences. A sharpness: from its values on the same disjoint subsets of the
    examples and, of a drawn one, under the same draws (Student's t). Nothing where the samples differ or a spread is
    missing: an unpaired interval would be far too wide.
    """
    first = analyses[0]
    samples = {a.provenance.get("sample_sha256") for a in analyses}
    if len(analyses) < 2 or len(samples) != 1:
        return {}
    differences: dict[str, list[dict[str, float] | None]] = {
        name: [_of_examples(a.examples.get(name), first.examples.get(name)) for a in analyses]
        for name in ("loss", "accuracy")
    }
    for key in first.measures:
        differences[key] = [_of_subsets(a, first, key) for a in analyses]
    return differences


def _of_examples(other: np.ndarray | None, first: np.ndarray | None) -> dict[str, float] | None:
    if other is None or first is None or len(other) < 2:
        return None
    difference = statistics.paired_examples(other, first)
    return {"value": difference.value, "low": difference.low, "high": difference.high}


def _of_subsets(other: Analysis, first: Analysis, key: str) -> dict[str, float] | None:
    results = [a.measures.get(key) for a in (other, first)]
    if any(getattr(r, "subsets", None) is None for r in results):
        return None
    mine, theirs = (_at_first_radius(r.subsets) for r in results)  # type: ignore[union-attr]
    if mine.shape != theirs.shape:
        return None
    center = np.array([results[0].value - results[1].value])  # type: ignore[union-attr]
    parts = [statistics.interval_around(center, mine - theirs), *_of_draws(center, results)]
    low, high = (float(bound[0]) for bound in statistics.combined(center, *parts))
    if not math.isfinite(low):  # an infinite sigma has no difference
        return None
    return {"value": float(center[0]), "low": low, "high": high}


def _of_draws(center: np.ndarray, results: Sequence[Result | None]) -> list[np.ndarray]:
    """The difference over draws: paired where both results hold the draws, which they share; else each one's apart."""
    drawn = [getattr(r, "per_draw", None) for r in results]
    mine, theirs = (_at_first_radius(d) if d is not None else np.empty(0) for d in drawn)
    if len(mine) and mine.shape == theirs.shape:
        return [statistics.interval_around(center, mine - theirs)]
    halves = [statistics.Z * float(np.ravel(r.stderr)[0]) for r in results if getattr(r, "stderr", None) is not None]  # type: ignore[union-attr]
    return [np.stack([center - half, center + half]) for half in halves]


def _at_first_radius(values: np.ndarray) -> np.ndarray:
    """(n, 1) of (n, rho), or of (n,) for a measure that has one value."""
    return np.asarray(values).reshape(len(values), -1)[:, :1]
