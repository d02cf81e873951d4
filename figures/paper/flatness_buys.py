"""What flatness buys: do flatter checkpoints lose less under rounding of their weights, and under fine-tuning?"""

from __future__ import annotations

from typing import Any

import numpy as np

from figures.drawing import style
from figures.paper import all_methods
from figures.study import recipes
from figures.study.figure import Figure
from figures.study.figure_data import FigureData
from figures.study.study import Study
from figures.study.tasks import Computation, Training
from figures.study.verdict import Claim
from landscape import statistics
from landscape.registry import register
from landscape.statistics import Estimate

BITS = (4, 3)
FORGETTING: dict[str, Any] = {"steps": 50, "lr": 0.01}
LOSSES = {
    "rise at 4 bits": "weights rounded to 4 bits",
    "rise at 3 bits": "weights rounded to 3 bits",
    "forgetting": "fine-tuned on half of the classes",
}
"""What is lost -> how."""
BESIDE: dict[str, dict[str, Any]] = {
    "soft_rank": {"damping": 0.01, "matrix": "ggn", "probes": 4, "steps": 15, "takeuchi": False},
    "fisher_rao_norm": {},
    "relative_flatness": {"probes": 40},
    "basin_radius": {"directions": 10, "worst_case": False},
}
"""Measures that are taken beside those of all-methods."""
MEASURES = {
    "sam_sharpness": "SAM sharpness",
    "worst_case_sharpness": "worst case",
    "average_sharpness": "average",
    "adaptive_sharpness": "adaptive",
    "hessian_top_eigenvalues": r"$\lambda_{max}$",
    "hessian_trace": "trace",
    "soft_rank": "soft rank",
    "fisher_rao_norm": "Fisher-Rao",
    "relative_flatness": "relative flatness",
    "basin_radius": "1 / basin radius",
}
"""Measure -> its name in the picture; all of them are large where the loss is sharp."""
DRAWS = 1000


@register(
    "flatness-buys", source="ours; compare arXiv 2605.02105 (quantization, forgetting) and 2506.17809 (soft rank)"
)
class FlatnessBuys(Figure):
    """Rank correlation of every measure of flatness with what rounding and fine-tuning take from a checkpoint."""

    title = "Do flatter checkpoints lose less?"

    def _runs(self, study: Study) -> dict[tuple[str, int], Training]:
        """The runs of all-methods on clean labels: every method, at its defaults."""
        return {(m, s): t for (m, noise, s), t in all_methods.noisy_runs(study).items() if noise == 0}

    def _measured(self, study: Study) -> dict[tuple[str, int], Computation]:
        return {(m, s): c for (m, noise, s), c in all_methods.measured(study).items() if noise == 0}

    def _bought(self, study: Study) -> dict[tuple[str, int], Computation]:
        arguments = {"wanted": BESIDE, "bits": list(BITS), "forgetting": FORGETTING, "samples": study.samples(2048)}
        runs = self._runs(study)
        return {key: Computation("figures.study.computations:bought", (t,), arguments) for key, t in runs.items()}

    def plan(self, study: Study) -> list[Computation]:
        """The measures of all-methods, and what is lost."""
        return [*self._measured(study).values(), *self._bought(study).values()]

    def collect(self, study: Study) -> FigureData:
        """One row per checkpoint."""
        runs = self._runs(study)
        flat = {key: study.result(c) for key, c in self._measured(study).items()}
        lost = {key: study.result(c) for key, c in self._bought(study).items()}
        facts = {**recipes.describe(*runs.values()), "checkpoints": len(runs), "methods": len({m for m, _ in runs})}
        facts |= {"samples": study.samples(2048), "seeds": len(study.seeds(3, 5)), "draws": DRAWS, **FORGETTING}
        facts["interval"] = "95%, bootstrap over whole methods: their seeds stay together"
        facts["hyperparameters"] = "each method's documented defaults"
        numbers = FigureData(facts=facts)
        numbers.axis("checkpoint", [f"{m}, seed {s}" for m, s in runs])
        axes = ("checkpoint",)
        numbers.add("method", axes, [m for m, _ in runs])
        for i, name in enumerate(LOSSES):
            kind, at = ("quantization", i) if i < len(BITS) else ("forgetting", None)
            for ending in ("", "_predicted"):
                values = [
                    float(lost[key][kind + ending] if at is None else lost[key][kind + ending][at]) for key in runs
                ]
                numbers.add(name + ending.replace("_", ", "), axes, values, "nats")
        numbers.add("learned", axes, [float(lost[key]["learned"]) for key in runs], "nats")
        for measure in MEASURES:
            values = [float((lost if measure in BESIDE else flat)[key][measure]) for key in runs]
            numbers.add(measure, axes, 1 / np.array(values) if measure == "basin_radius" else values)
        numbers.add("train_loss", axes, [float(flat[key]["loss"]) for key in runs], "nats")
        return numbers

    def _correlation(self, numbers: FigureData, loss: str, *columns: str) -> Estimate:
        """Spearman's rho of a column with a loss; of two columns, how much larger the first one's is."""

        def value(target: np.ndarray, *values: np.ndarray) -> float:
            first, *second = (statistics.spearman(v, target) for v in values)
            return first - second[0] if second else first

        arrays = [numbers[n] for n in (loss, *columns)]
        return statistics.bootstrap(value, *arrays, clusters=numbers["method"], draws=int(numbers.facts["draws"]))

    def draw(self, numbers: FigureData) -> Any:
        """Above: every measure's correlation with each loss. Below: the rise at 4 bits against its prediction."""
        import matplotlib.pyplot as plt

        estimates = {(loss, m): self._correlation(numbers, loss, m) for loss in LOSSES for m in MEASURES}
        order = sorted(MEASURES, key=lambda m: estimates["rise at 4 bits", m].value)
        figure, (top, bottom) = plt.subplots(
            2, 1, figsize=(style.COLUMN, 4.9), height_ratios=(1.75, 1), layout="constrained"
        )
        for i, (loss, text) in enumerate(LOSSES.items()):
            row = [estimates[loss, m] for m in order]
            error = np.maximum(0.0, np.array([[e.value - e.low, e.high - e.value] for e in row]).T)
            look = {"fmt": "os^"[i], "color": style.color(i), "markersize": 3, "elinewidth": 0.9, "capsize": 0}
            top.errorbar([e.value for e in row], np.arange(len(row)) + 0.25 * (1 - i), xerr=error, label=text, **look)
        top.axvline(0, color="#bbbbbb", linewidth=0.7, zorder=0)
        top.set_yticks(np.arange(len(order)), [MEASURES[m] for m in order])
        top.set(xlabel=r"Spearman's $\rho$ with the rise of the loss", xlim=(-1, 1), ylabel="measure (large is sharp)")
        facts = numbers.facts
        top.set_title(f"{facts['checkpoints']} checkpoints of {facts['methods']} methods")
        figure.legend(*top.get_legend_handles_labels(), loc="outside lower center", ncols=1)
        hidden = 0
        for i, loss in enumerate(LOSSES):
            x, y = numbers[f"{loss}, predicted"], numbers[loss]
            shown = (x > 0) & (y > 0)
            hidden += int((~shown).sum())
            bottom.plot(x[shown], y[shown], "os^"[i], color=style.color(i), markersize=2.5, alpha=0.8)
        low, high = bottom.dataLim.intervaly
        if low <= high:  # not where nothing is shown
            bottom.plot([low, high], [low, high], color="#8a9099", linewidth=0.7, zorder=0)
        if hidden:
            note = f"{hidden} at or below 0\nare not shown"
            bottom.text(0.98, 0.04, note, transform=bottom.transAxes, ha="right", va="bottom", fontsize=6)
        bottom.set_title("rise against prediction")
        bottom.set(xscale="log", yscale="log", xlabel="predicted, $g'e + e'He/2$ (nats)", ylabel="rise (nats)")
        return figure

    def judge(self, numbers: FigureData) -> list[Claim]:
        """Does each measure rank each loss; does what the ball's shape says rank better; is the prediction good."""
        note = (
            "Whole methods are resampled (n counts them): one method's seeds resemble each other. Methods at their "
            "defaults, clean labels, a network with BatchNorm, whose weights have a scale that the function ignores. "
            "They differ in their training loss too, which measure and loss may both follow."
        )
        return [
            *(
                Claim(
                    text=f"A flatter checkpoint loses less: {m.replace('_', ' ')}, {text}",
                    quantity="Spearman's rho of the measure with the rise of the loss",
                    published="above 0 (2605.02105)",
                    ours=self._correlation(numbers, loss, m),
                    above=0.0,
                    note=note,
                )
                for loss, text in LOSSES.items()
                for m in MEASURES
            ),
            *(
                Claim(
                    text=f"Adaptive sharpness ranks what is lost better than SAM sharpness: {text}",
                    quantity="difference of Spearman's rho",
                    published="-",
                    ours=self._correlation(numbers, loss, "adaptive_sharpness", "sam_sharpness"),
                    above=0.0,
                    note=note,
                )
                for loss, text in LOSSES.items()
            ),
            *(
                Claim(
                    text=f"g'e + e'He / 2 ranks what is lost: {text}",
                    quantity="Spearman's rho of the prediction with the rise",
                    published="-" if loss == "forgetting" else "above 0 (Nagel 2020)",
                    ours=self._correlation(numbers, loss, f"{loss}, predicted"),
                    above=0.0,
                    note=note,
                )
                for loss, text in LOSSES.items()
            ),
        ]
