"""Minima and saddles: the merge tree, and how persistent minima are beside what noise of the same kind gives."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from figures.drawing import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from landscape.surfaces.persistence import Persistence

_MOST = 24
"""Minima that a tree shows: the most persistent."""
_GRAY = "#9aa1aa"


def write(result: Persistence, stem: str | Path) -> list[Path]:
    """Draw both pictures side by side into `stem`.pdf and .png; returns the files written."""
    figure = style.footnote(draw(result), result.caption(), *(f"! {w}" for w in result.warnings))
    facts = {**result.arguments, **result.provenance}
    return style.save(figure, stem, facts, title="persistence")


def draw(result: Persistence) -> Figure:
    """The merge tree on the left, the ranked persistences on the right."""
    import matplotlib.pyplot as plt

    with style.use():
        figure, (tree, ranks) = plt.subplots(1, 2, figsize=(style.PAGE, 2.6), layout="constrained")
        draw_tree(result, tree)
        draw_ranks(result, ranks)
    return figure


def draw_tree(result: Persistence, axes: Axes) -> None:
    """A line from every minimum up to its saddle, and over to the deeper minimum; gray where noise explains it."""
    shown = range(min(len(result.birth), _MOST))
    places = _leaves(result, len(shown))
    saddles = [result.death[i] for i in shown if np.isfinite(result.death[i])]
    low, high = float(result.birth[0]), max([*saddles, *result.birth[list(shown)]])
    top = high + 0.12 * (high - low or 1.0)
    for i in shown:
        ink = style.color(0) if result.stands_out[i] else _GRAY
        end = result.death[i] if np.isfinite(result.death[i]) else top
        axes.plot([places[i]] * 2, [result.birth[i], end], color=ink, linewidth=1.2)
        axes.plot(places[i], result.birth[i], "v", color=ink, markersize=4)
        if result.parent[i] >= 0:
            axes.plot([places[i], places[result.parent[i]]], [end, end], color=ink, linewidth=0.8)
            noise = result.birth[i], result.birth[i] + result.noise[i]
            axes.plot([places[i]] * 2, noise, color=style.color(1), linewidth=4, alpha=0.35, solid_capstyle="butt")
    axes.plot([], [], color=style.color(1), linewidth=4, alpha=0.35, label="what noise can make")
    left_out = len(result.birth) - len(shown)
    words = f"the {len(shown)} most persistent of {len(result.birth)} minima" if left_out else "minima"
    axes.set(xticks=[], xlabel=words, ylabel="loss", ylim=(low - 0.05 * (top - low), top))
    if len(shown) > 1:
        axes.legend(loc="upper right")


def draw_ranks(result: Persistence, axes: Axes) -> None:
    """Persistences from the largest down, beside those of random surfaces of the same spectrum."""
    ours = result.persistence[np.isfinite(result.death)]
    count = max(len(ours), 1)
    ranks = np.arange(1, count + 1)
    if len(ours):
        colors = [style.color(0) if s else _GRAY for s in result.stands_out[np.isfinite(result.death)]]
        axes.scatter(ranks, ours, c=colors, s=12, zorder=3)
        axes.plot(ranks, result.noise[np.isfinite(result.death)], color=style.color(1), label="noise can make (95%)")
    if len(result.surrogates):
        beside = np.arange(1, result.surrogates.shape[1] + 1)
        low, middle = (np.quantile(result.surrogates, q, axis=0) for q in (0.05, 0.5))
        axes.fill_between(beside, low, result.smooth, color=style.color(2), alpha=0.2, linewidth=0)
        axes.plot(beside, middle, color=style.color(2), linestyle="--", label="same spectrum (5% to 95%)")
    positive = [v for v in (*ours, *result.noise[np.isfinite(result.death)]) if v > 0]
    if positive and max(positive) > 30 * min(positive):
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.3 * min(positive))
    axes.set(xlabel="minimum, by rank", ylabel="persistence", xlim=(0.5, max(count, 10) + 0.5))
    axes.locator_params(axis="x", integer=True)
    if axes.get_legend_handles_labels()[1]:
        axes.legend()


def _leaves(result: Persistence, count: int) -> dict[int, float]:
    """Place of every minimum from left to right: those that join a minimum stand next to it, so that no lines cross."""
    order: list[int] = []
    # The lower the saddle, the later its minimum is put next to the parent, and the nearer it stands.
    for i in np.argsort(-result.death[:count], kind="stable").tolist():
        parent = int(result.parent[i])
        order.insert(order.index(parent) + 1 if parent >= 0 else len(order), i)
    return {m: float(place) for place, m in enumerate(order)}
