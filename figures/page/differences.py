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

    Loss and accuracy: mean of the per-example differences +- 1.96 standard errors. A sharpness: from its values on the
    same disjoint subsets of the examples (Student's t). Nothing where the samples differ or a spread is missing: an
    unpaired interval would be far too wide.
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
    low, high = (float(bound[0]) for bound in statistics.interval_around(center, mine - theirs))
    if not math.isfinite(low):  # an infinite sigma has no difference
        return None
    # Both saw the same noise, but the spread over subsets says nothing of other draws: theirs is added, unpaired.
    half = math.hypot((high - low) / 2, *(statistics.Z * _draw_error(r) for r in results))
    return {"value": float(center[0]), "low": float(center[0]) - half, "high": float(center[0]) + half}


def _draw_error(result: Result | None) -> float:
    """Standard error over random draws at the first radius; 0 for a measure that draws nothing."""
    stderr = getattr(result, "stderr", None)
    return 0.0 if stderr is None else float(np.ravel(stderr)[0])


def _at_first_radius(subsets: np.ndarray) -> np.ndarray:
    """(subset, 1) of (subset, rho), or of (subset,) for a measure that has one value."""
    return np.asarray(subsets).reshape(len(subsets), -1)[:, :1]
