"""The loss along a path between two networks, with its barrier."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from figures.drawing import style
from figures.page.analysis import labels
from landscape.formatting import number

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write(result: Any, directory: str | Path, ends: Sequence[Path] = ()) -> list[Path]:
    """Draw the path; returns the files written."""
    notes = [result.caption(), *(f"! {w}" for w in result.warnings)]
    figure = style.footnote(draw(result, labels(ends)), *notes)
    return style.save(figure, Path(directory) / "path", {**result.arguments, **result.provenance}, title="path")


def draw(result: Any, ends: Sequence[str] = ()) -> Figure:
    """Loss above, accuracy below where there is one; the line between the ends is dotted, the barrier an arrow."""
    import matplotlib.pyplot as plt

    accuracy = np.isfinite(result.accuracy).any()
    with style.use():
        figure, panels = plt.subplots(
            1 + accuracy,
            1,
            figsize=(style.COLUMN, 2.1 + 1.4 * accuracy),
            sharex=True,
            squeeze=False,
            layout="constrained",
        )
        draw_losses(result, panels[0, 0])
        if accuracy:
            panels[0, 0].set_xlabel("")
            for i, (_, _, right) in enumerate(_rows(result)):
                panels[1, 0].plot(result.t, right, **_look(i))
            panels[1, 0].set_ylabel("accuracy")
        panels[-1, 0].set_xlabel("t" + (f"  (0: {ends[0]}, 1: {ends[1]})" if len(ends) == 2 else ""))
    return figure


def draw_losses(result: Any, panel: Any) -> None:
    """The loss on every dataset; the line between the ends is dotted, the barrier an arrow."""
    for i, (name, loss, _) in enumerate(_rows(result)):
        panel.plot(result.t, loss, label=name, **_look(i))
        panel.plot(result.t[[0, -1]], loss[[0, -1]], color=style.color(i), linewidth=0.7, linestyle=":")
    if np.isfinite(result.barrier) and result.barrier > 0.02 * np.ptp(result.loss):
        _barrier(panel, result)
    if result.others:
        panel.legend()
    panel.set(xlabel="t", ylabel="loss", xlim=(0, 1))


def _rows(result: Any) -> list[tuple[str, Any, Any]]:
    """(name, loss, accuracy) of every dataset."""
    main = "train" if "test" in result.others else "test" if "train" in result.others else "loss"
    others = zip(result.others, result.other_loss, result.other_accuracy, strict=True) if result.others else ()
    return [(main, result.loss, result.accuracy), *others]


def _look(series: int) -> dict[str, Any]:
    return {"color": style.color(series), "linestyle": ("-", "--", "-.")[series % 3]}


def _barrier(panel: Any, result: Any) -> None:
    at = int(np.argmin(np.abs(result.t - result.barrier_at)))
    top = float(result.loss[at])
    look = {"arrowstyle": "<->", "color": "#3a3f45", "linewidth": 0.8, "shrinkA": 0, "shrinkB": 0}
    panel.annotate("", (result.barrier_at, top), (result.barrier_at, top - result.barrier), arrowprops=look)
    right = result.barrier_at < 0.6
    panel.annotate(
        f"barrier {number(result.barrier, 3)}",
        (result.barrier_at, top - result.barrier / 2),
        xytext=(4 if right else -4, 0),
        textcoords="offset points",
        ha="left" if right else "right",
        va="center",
        fontsize=6.5,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.8},
    )
