"""SGD, SAM, RST and G-RST: accuracy and passes."""

from __future__ import annotations

from typing import Any

import numpy as np

from figures.drawing import bands, style
from figures.study import recipes
from figures.study.figure import Figure
from figures.study.figure_data import FigureData
from figures.study.study import Study
from figures.study.tasks import Training
from figures.study.verdict import Claim
from landscape import statistics
from landscape.registry import register

METHODS = ("sgd", "sam", "rst", "g-rst")


@register("rst-table", source="RST paper, the comparison of SGD, SAM, RST and G-RST")
class RandomizedTable(Figure):
    """Accuracy and passes of SGD, SAM, RST and G-RST: does G-RST beat SAM at half of its extra cost?"""

    title = "RST and G-RST against SAM"

    def _runs(self, study: Study) -> dict[tuple[str, int], Training]:
        return {(m, s): recipes.images(study, m, s) for m in METHODS for s in study.seeds(recipes.SEEDS)}

    def plan(self, study: Study) -> list[Training]:
        """Four methods; SGD's and SAM's runs are shared with other figures."""
        return list(self._runs(study).values())

    def collect(self, study: Study) -> FigureData:
        """Accuracy and passes per step."""
        runs = self._runs(study)
        seeds = study.seeds(recipes.SEEDS)
        histories = {key: study.history(t) for key, t in runs.items()}
        numbers = FigureData(facts={**recipes.describe(*runs.values()), "seeds": len(seeds)})
        numbers.facts["RST and G-RST"] = "rho 0.05, linear1 with p 0.5; G-RST alpha = 1 / mean p (the defaults)"
        numbers.axis("method", METHODS)
        numbers.axis("seed", seeds)

        def passes(m: str, s: int) -> float:
            columns = [histories[k, s] for k in (m, "sgd")]
            cost = [c["forward_examples"][-1] + 2 * c["backward_examples"][-1] for c in columns]
            return float(cost[0] / cost[1])

        accuracy = [[histories[m, s]["test_accuracy"][-1] for s in seeds] for m in METHODS]
        numbers.add("test_accuracy", ("method", "seed"), accuracy, "share of examples")
        numbers.add("passes", ("method", "seed"), [[passes(m, s) for s in seeds] for m in METHODS], "passes per step")
        return numbers

    def draw(self, numbers: FigureData) -> Any:
        """Accuracy over passes."""
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(figsize=(style.COLUMN, 2.5), layout="constrained")
        for method in METHODS:
            x, y = numbers.at("passes", method=method), 100 * numbers.at("test_accuracy", method=method)
            ink = bands.color(method)
            # RST and G-RST make the same steps: their means stand on either side of their cost.
            side = 1 if method != "g-rst" else -1
            mean, half = bands.interval(y)
            if side > 0:
                axes.plot(x, y, "o", color=ink, alpha=0.6, markersize=2.4, markeredgewidth=0)
            else:  # rings around the dots of RST
                axes.plot(x, y, "o", color=ink, markersize=4.4, markerfacecolor="none", markeredgewidth=0.7)
            axes.errorbar([x.mean() + 0.025 * side], [mean], [np.nan_to_num(half)], fmt="o", color=ink, elinewidth=1)
            axes.annotate(
                bands.label(method),
                (x.mean() + 0.025 * side, mean),
                xytext=(6 * side, 0),
                textcoords="offset points",
                color=ink,
                va="center",
                ha="left" if side > 0 else "right",
            )
        axes.set(xlim=(0.9, 2.25), xlabel="forward-backward passes per step (SGD = 1)", ylabel="test accuracy (%)")
        axes.set_title(f"dots: {len(numbers['seed'])} seeds; bars: 95% intervals")
        return figure

    def judge(self, numbers: FigureData) -> list[Claim]:
        """The paper's claim in two halves."""
        accuracy = {m: 100 * numbers.at("test_accuracy", method=m) for m in METHODS}
        passes = {m: numbers.at("passes", method=m) for m in METHODS}

        def more_accurate(method: str, other: str, published: str) -> Claim:
            return Claim(
                text=f"{bands.label(method)} is more accurate than {bands.label(other)}",
                quantity="difference of test accuracy",
                published=published,
                ours=statistics.paired(accuracy[method], accuracy[other]),
                above=0.0,
                unit="percentage points",
            )

        return [
            more_accurate("g-rst", "sam", "mostly"),
            Claim(
                text="G-RST saves at least half of SAM's extra cost",
                quantity="extra passes of G-RST / of SAM",
                published="at most 0.5",
                ours=statistics.mean((passes["g-rst"] - 1) / (passes["sam"] - 1)),
                below=0.55,
                note="Steps are drawn at random: 10% above a half is allowed for.",
            ),
            *(more_accurate(m, "sgd", "above 0") for m in ("sam", "rst", "g-rst")),
        ]
