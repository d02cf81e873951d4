"""Methods as rows of a figure, grouped by what they cost and do: a heading above each family."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from figures.drawing import bands

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FAMILIES = {
    "base optimizers": ("sgd", "adam", "adamw", "lion", "muon"),
    "SAM-like: two passes": (
        "sam", "asam", "amp", "eigen-sam", "friendly-sam", "functional-sam", "gnp", "gsam", "le-sam", "sam-on", "ssam",
        "vasso", "wsam", "xsam",
    ),
    "cheaper than SAM": (
        "esam", "flat-lora", "g-rst", "k-sam", "looksam", "msam", "random-perturbation", "rst", "subset-sam",
    ),
    "trajectory terms": ("saf", "mesa"),
}  # fmt: skip
"""By what a step takes: two full passes; fewer, or one over fewer examples; or one, with a term of the past."""
OTHER = "other methods"
"""Family of a method that is in none of these: a new file takes part without being listed."""


@dataclass(frozen=True)
class Rows:
    """Heights of methods and headings, the last row at 0."""

    methods: dict[str, float]
    headings: dict[str, float]

    @property
    def count(self) -> int:
        """Rows in all."""
        return len(self.methods) + len(self.headings)


def rows(methods: Iterable[str]) -> Rows:
    """A row for each method, in the order of the families and within each in the order given."""
    methods = list(methods)
    listed = {m for members in FAMILIES.values() for m in members}
    grouped = {**FAMILIES, OTHER: tuple(m for m in methods if m not in listed)}
    parts = {family: [m for m in methods if m in members] for family, members in grouped.items()}
    parts = {family: members for family, members in parts.items() if members}
    at, placed, headings = float(len(methods) + len(parts)), {}, {}
    for family, members in parts.items():
        at -= 1
        headings[family] = at
        for method in members:
            at -= 1
            placed[method] = at
    return Rows(placed, headings)


def frame(panels: Sequence[Axes], shown: Rows) -> None:
    """Names at the left, headings from there on over a shaded row across all panels, a line through every row."""
    for axes in panels:
        axes.tick_params(axis="y", length=0)
        axes.grid(True, axis="y")
        axes.spines["left"].set_visible(False)  # headings run on over it
        for height in shown.headings.values():
            axes.axhspan(height - 0.42, height + 0.42, facecolor="#eef1f4", edgecolor="none", zorder=2.5)
    first = panels[0]
    heights = shown.methods
    first.set_yticks(list(heights.values()), [bands.label(m) for m in heights])
    first.set_ylim(-0.6, shown.count - 0.4)
    for family, height in shown.headings.items():
        first.annotate(
            family, (0, height), xycoords=("axes fraction", "data"), xytext=(-44, 0), textcoords="offset points",
            va="center", fontsize=6.5, weight="bold", annotation_clip=False,
        ).set_in_layout(False)  # fmt: skip
