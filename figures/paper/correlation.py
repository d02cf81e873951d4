"""Which measure ranks the checkpoints' generalization best."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from figures.drawing import style
from figures.paper.all_methods import MEASURES, NOISE, measured
from figures.study import recipes
from figures.study.figure import Figure
from figures.study.figure_data import FigureData
from figures.study.study import Study
from figures.study.tasks import Computation
from figures.study.verdict import Claim
from landscape import statistics
from landscape.registry import register
from landscape.statistics import Estimate

STATISTICS = {"kendall": "Kendall's $\\tau$", "spearman": "Spearman's $\\rho$"}
TARGETS = {"gap": "training - test accuracy", "error": "test error"}
SHOWN = {
    "sam_sharpness": "SAM sharpness",
    "worst_case_sharpness": "worst-case sharpness",
    "average_sharpness": "average sharpness",
    "adaptive_sharpness": "adaptive sharpness",
    "hessian_top_eigenvalues": "$\\lambda_{max}$ of the Hessian",
    "hessian_trace": "trace of the Hessian",
    "gradient_norm": "norm of the gradient",
}
NAMES = {"hessian_top_eigenvalues": "lambda_max", "hessian_trace": "trace"}


def within(
    statistic: Callable[[np.ndarray, np.ndarray], float], noise: np.ndarray, measure: np.ndarray, target: np.ndarray
) -> float:
    """A rank correlation within each label noise, averaged: noise itself must not make the ranking.

    nan where one of them cannot be computed: an average over fewer noises would be another quantity.
    """
    return float(np.mean([statistic(measure[noise == level], target[noise == level]) for level in np.unique(noise)]))


def _name(measure: str) -> str:
    return NAMES.get(measure, measure).replace("_", " ")


RANKS = {"kendall": statistics.kendall, "spearman": statistics.spearman}


@register("correlation", source="ours; compare Jiang et al. 2020 (arXiv 1912.02178), Andriushchenko et al. 2023")
class Correlation(Figure):
    """Kendall's tau and Spearman's rho of every measure with the generalization gap and the test error, all methods."""

    title = "Which measure ranks generalization?"

    def plan(self, study: Study) -> list[Computation]:
        """The checkpoints and measures of all-methods."""
        return list(measured(study).values())

    def collect(self, study: Study) -> FigureData:
        """One row per checkpoint."""
        computations = measured(study)
        results = {key: study.result(c) for key, c in computations.items()}
        shared = recipes.describe(*(c.trainings[0] for c in computations.values()))
        numbers = FigureData(facts={**shared, "checkpoints": len(results), "seeds": len(study.seeds(3, 5))})
        numbers.facts.update({"samples": study.samples(2048), "label noise": list(NOISE), "draws": 1000})
        numbers.facts["interval"] = "95%, bootstrap over whole methods: their seeds and noise levels stay together"
        numbers.axis("checkpoint", [f"{m}, noise {n:g}, seed {s}" for m, n, s in results])
        numbers.facts["methods"] = len({m for m, _, _ in results})
        axes = ("checkpoint",)
        numbers.add("method", axes, [m for m, _, _ in results])
        numbers.add("noise", axes, [n for _, n, _ in results], "share of labels")
        test = [float(study.history(c.trainings[0])["test_accuracy"][-1]) for c in computations.values()]
        train = [float(r["accuracy"]) for r in results.values()]
        numbers.add("gap", axes, np.array(train) - np.array(test), "share of examples")
        numbers.add("error", axes, 1 - np.array(test), "share of examples")
        for measure in MEASURES:
            numbers.add(measure, axes, [float(r[measure]) for r in results.values()])
        return numbers

    def _correlation(self, numbers: FigureData, statistic: str, target: str, *measures: str) -> Estimate:
        """The rank correlation of a measure; of two, how much larger the first one's is."""

        def value(noise: np.ndarray, wanted: np.ndarray, *columns: np.ndarray) -> float:
            first, *second = (within(RANKS[statistic], noise, c, wanted) for c in columns)
            return first - second[0] if second else first

        columns = [numbers[n] for n in ("noise", target, *measures)]
        return statistics.bootstrap(value, *columns, clusters=numbers["method"], draws=int(numbers.facts["draws"]))

    def draw(self, numbers: FigureData) -> Any:
        """One panel per statistic: every measure with its interval."""
        import matplotlib.pyplot as plt

        correlations = {
            (s, t, m): self._correlation(numbers, s, t, m) for s in STATISTICS for t in TARGETS for m in MEASURES
        }
        figure, panels = plt.subplots(1, 2, figsize=(style.PAGE, 2.7), sharey=True, layout="constrained")
        order = sorted(MEASURES, key=lambda m: correlations["kendall", "gap", m].value)
        for axes, (statistic, name) in zip(panels, STATISTICS.items(), strict=True):
            for i, (target, text) in enumerate(TARGETS.items()):
                row = [correlations[statistic, target, m] for m in order]
                y = np.arange(len(order)) + (0.13 if i == 0 else -0.13)
                error = np.maximum(0.0, np.array([[e.value - e.low, e.high - e.value] for e in row]).T)
                axes.errorbar(
                    [e.value for e in row],
                    y,
                    xerr=error,
                    fmt="os"[i],
                    color=style.color(i),
                    markersize=3,
                    elinewidth=0.9,
                    label=text if axes is panels[0] else None,
                )
            axes.axvline(0, color="#bbbbbb", linewidth=0.7, zorder=0)
            axes.set(xlabel=f"{name} within each label noise", xlim=(-1, 1), xticks=np.linspace(-1, 1, 5))
        panels[0].set_yticks(np.arange(len(order)), [SHOWN[m] for m in order])
        panels[0].set_ylabel("measure")
        facts = numbers.facts
        panels[0].set_title(f"{facts['checkpoints']} checkpoints of {facts['methods']} methods")
        panels[1].set_title("bars: 95%, whole methods resampled")
        figure.legend(loc="outside lower center", ncols=2)
        return figure

    def judge(self, numbers: FigureData) -> list[Claim]:
        """Does any sharpness rank; does the adaptive one rank better."""
        note = (
            "Whole methods are resampled (n counts them): one method's seeds and noise levels resemble each other. "
            "Methods at their defaults, three label noises."
        )
        words = {"kendall": "Kendall's tau", "spearman": "Spearman's rho"}
        return [
            *(
                Claim(
                    text=f"A larger {_name(m)} goes with a larger generalization gap ({s.title()})",
                    quantity=f"{words[s]} within each label noise",
                    published="above 0",
                    ours=self._correlation(numbers, s, "gap", m),
                    above=0.0,
                    note=note,
                )
                for m in MEASURES
                for s in STATISTICS
            ),
            *(
                Claim(
                    text=f"Adaptive sharpness ranks the gap better than SAM sharpness ({s.title()})",
                    quantity=f"difference of {words[s]}",
                    published="above 0 (Kwon 2021); disputed (Andriushchenko 2023)",
                    ours=self._correlation(numbers, s, "gap", "adaptive_sharpness", "sam_sharpness"),
                    above=0.0,
                    note=note,
                )
                for s in STATISTICS
            ),
        ]
