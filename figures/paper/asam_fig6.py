"""The toy 2-D data of the ASAM report at six variances."""

from __future__ import annotations

from typing import Any

import numpy as np

from figures.drawing import style
from figures.study.figure import Figure
from figures.study.figure_data import FigureData
from figures.study.study import Study
from figures.study.tasks import Computation
from figures.study.verdict import Claim
from landscape import statistics
from landscape.registry import register

VARIANCES = (5, 10, 15, 30, 50, 80)
SHOWN = 2000
DRAWN = 20_000


def draw_points(*, variance: float, seed: int, n: int) -> dict[str, Any]:
    """Points, classes and the error of the Bayes rule on them."""
    from landscape.random import stream
    from trainers.data import toy2d

    x, y = toy2d.sample(n, variance, stream(seed, "asam-fig6"))
    error = (toy2d.bayes_rule(x) != y).double().mean()
    return {"points": x[:SHOWN].numpy(), "classes": y[:SHOWN].numpy(), "error": float(error)}


@register("asam-fig6", source="ASAM report, Figure 6")
class ToyData(Figure):
    """The toy data at variances 5 to 80, with the best possible boundary and its error."""

    title = "Toy 2-D data at increasing variance"

    def _draws(self, study: Study) -> dict[tuple[int, int], Computation]:
        return {
            (v, s): Computation(f"{__name__}:draw_points", arguments={"variance": v, "seed": s, "n": DRAWN})
            for v in VARIANCES
            for s in study.seeds(10, 10)
        }

    def plan(self, study: Study) -> list[Computation]:
        """One draw per variance and seed."""
        return list(self._draws(study).values())

    def collect(self, study: Study) -> FigureData:
        """Points of seed 0; errors of the Bayes rule of all seeds, drawn and integrated."""
        from trainers.data.toy2d import bayes_error

        draws = {key: study.result(c) for key, c in self._draws(study).items()}
        seeds = study.seeds(10, 10)
        numbers = FigureData(
            facts={"data": "toy2d", "points": SHOWN, "drawn": DRAWN, "seeds": len(seeds), "shown": "seed 0"}
        )
        numbers.axis("variance", VARIANCES)
        numbers.axis("seed", seeds)
        numbers.axis("point", range(SHOWN))
        numbers.axis("coordinate", ["x", "y"])
        axes = ("variance", "point")
        numbers.add("position", (*axes, "coordinate"), [draws[v, 0]["points"] for v in VARIANCES])
        numbers.add("class", axes, [draws[v, 0]["classes"] for v in VARIANCES])
        errors = [[float(draws[v, s]["error"]) for s in seeds] for v in VARIANCES]
        numbers.add("error_of_bayes_rule", ("variance", "seed"), errors, "share of points")
        numbers.add("bayes_error", ("variance",), [bayes_error(v) for v in VARIANCES], "share of points")
        return numbers

    def draw(self, numbers: FigureData) -> Any:
        """Six panels of points over the boundary of the Bayes rule."""
        import matplotlib.pyplot as plt

        figure, panels = plt.subplots(2, 3, figsize=(style.PAGE, 4.7), sharex=True, sharey=True, layout="constrained")
        limit = 46
        for axes, variance in zip(panels.flat, numbers["variance"], strict=True):
            for angle in np.pi / 8 + np.arange(8) * np.pi / 4:
                axes.plot([0, 70 * np.cos(angle)], [0, 70 * np.sin(angle)], color="#9aa0a6", linewidth=0.6)
            position, classes = numbers.at("position", variance=variance), numbers.at("class", variance=variance)
            for k, marker in ((0, "o"), (1, "^")):
                axes.scatter(*position[classes == k].T, s=2.2, marker=marker, color=style.color(k), alpha=0.6, lw=0)
            error = float(numbers.at("bayes_error", variance=variance))
            axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
            axes.set_title(f"$\\sigma^2$ = {variance}: Bayes error {100 * error:.1f}%")
        for axes in panels[1]:
            axes.set_xlabel("$x_1$ (units of the ring: radius 20)")
        for axes in panels[:, 0]:
            axes.set_ylabel("$x_2$")
        return figure

    def judge(self, numbers: FigureData) -> list[Claim]:
        """The report states no number here: our data's stated difficulty is checked instead."""
        gap = numbers["error_of_bayes_rule"] - numbers["bayes_error"][:, None]
        return [
            Claim(
                text="The data's Bayes error is what the integral says (our definition; the report gives none)",
                quantity=f"error of the Bayes rule on {DRAWN:,} points minus the integral, mean over variances",
                published="-",
                ours=statistics.mean(100 * gap.mean(axis=0)),
                above=-0.2,
                below=0.2,
                unit="percentage points",
            )
        ]
