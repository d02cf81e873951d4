"""The merge tree of a sampled function on a line or a plane: where its sublevel sets begin and where they join.

Between the points the function is taken as linear along a line and as bilinear in the cells of a plane. Two neighbors
are connected at the larger of their values; two opposite corners of a cell, where both lie below the other two, at the
saddle of the cell's bilinear function.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class MergeTree:
    """Minima, each with the saddle at which its basin joins that of a deeper one (the elder rule).

    Attributes:
        minima: (minimum,) flat index; the most persistent first, so that the lowest comes before all others.
        birth: (minimum,) value there.
        death: (minimum,) value of the saddle; inf where the basin joins no deeper one.
        saddles: (minimum, axis) fractional index of the saddle; nan where there is none.
        parents: (minimum,) number of the deeper minimum; -1 where there is none.
    """

    minima: np.ndarray
    birth: np.ndarray
    death: np.ndarray
    saddles: np.ndarray
    parents: np.ndarray


def merge_tree(values: np.ndarray) -> MergeTree:
    """Sublevel-set persistence of dimension 0, with its tree: union-find over the edges in the order of their height.

    Args:
        values: (x,) or (x, y); points that are not finite belong to no sublevel set.

    Pairs of persistence 0 are left out. Of equal values the earlier point is the deeper one. Cost: one sort.
    """
    flat = values.reshape(-1)
    ends, heights, places = _edges(values)
    parent, deepest = list(range(flat.size)), list(range(flat.size))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    joins: dict[int, tuple[int, int]] = {}
    level = flat.tolist()
    for edge in np.argsort(heights, kind="stable").tolist():
        a, b = (root(i) for i in ends[edge].tolist())
        if a == b:
            continue
        old, young = sorted((a, b), key=lambda r: (level[deepest[r]], deepest[r]))
        if heights[edge] > level[deepest[young]]:
            joins[deepest[young]] = deepest[old], edge
        parent[young] = old
    finite = np.flatnonzero(np.isfinite(flat))
    roots = {deepest[root(i)] for i in finite.tolist()}
    minima = np.array(sorted({*roots, *joins}), dtype=np.int64)
    death = np.array([heights[joins[m][1]] if m in joins else np.inf for m in minima.tolist()])
    order = np.lexsort((minima, flat[minima], -(death - flat[minima])))
    minima, death = minima[order], death[order]
    number = {m: i for i, m in enumerate(minima.tolist())}
    nowhere = np.full(values.ndim, np.nan)
    saddles = [places[joins[m][1]] if m in joins else nowhere for m in minima.tolist()]
    parents = [number[joins[m][0]] if m in joins else -1 for m in minima.tolist()]
    return MergeTree(
        minima, flat[minima], death, np.reshape(saddles, (-1, values.ndim)), np.array(parents, dtype=np.int64)
    )


def _edges(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ends (edge, 2) as flat indices, height and place (edge, axis) as a fractional index: edges of finite points."""
    index = np.arange(values.size).reshape(values.shape)
    pairs = [(index[:-1], index[1:])] if values.ndim == 1 else [(index[:-1], index[1:]), (index[:, :-1], index[:, 1:])]
    ends = np.concatenate([np.stack([a.reshape(-1), b.reshape(-1)], -1) for a, b in pairs])
    ends = ends[np.isfinite(values.reshape(-1)[ends]).all(-1)]
    both = values.reshape(-1)[ends]
    upper = ends[np.arange(len(ends)), both.argmax(-1)]
    places = np.stack(np.unravel_index(upper, values.shape), -1).astype(float)
    heights = both.max(-1)
    if values.ndim == 2:
        crossing = _diagonals(values, index)
        ends, heights, places = (np.concatenate(pair) for pair in zip((ends, heights, places), crossing, strict=True))
    return ends, heights, places


def _diagonals(values: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Opposite corners of cells that are connected at the saddle a + (c - a) s + (b - a) t + (a + d - b - c) s t."""
    corners = [(slice(None, -1), slice(None, -1)), (slice(None, -1), slice(1, None)), (slice(1, None), slice(None, -1))]
    a, b, c, d = (values[k].reshape(-1) for k in (*corners, (slice(1, None), slice(1, None))))
    ia, ib, ic, id_ = (index[k].reshape(-1) for k in (*corners, (slice(1, None), slice(1, None))))
    known = np.isfinite(a) & np.isfinite(b) & np.isfinite(c) & np.isfinite(d)
    falling = known & (np.maximum(a, d) < np.minimum(b, c))
    rising = known & (np.maximum(b, c) < np.minimum(a, d))
    chosen = falling | rising
    a, b, c, d = (corner[chosen] for corner in (a, b, c, d))
    first, second = np.where(rising, ib, ia)[chosen], np.where(rising, ic, id_)[chosen]
    bend = (a - b) + (d - c)
    s, t = (a - b) / bend, (a - c) / bend
    low = np.where(rising[chosen], np.maximum(b, c), np.maximum(a, d))
    high = np.where(rising[chosen], np.minimum(a, d), np.minimum(b, c))
    heights = np.clip(a + (c - a) * s, low, high)  # at t: a + (c - a) s + (b - a + bend s) t, and the last is 0
    cells = np.stack(np.unravel_index(ia[chosen], index.shape), -1)
    return np.stack([first, second], -1), heights, cells + np.stack([s, t], -1)
