"""Every method: accuracy at equal epochs, passes and seconds, under label noise, with every measure of sharpness."""

from __future__ import annotations

from typing import Any

import numpy as np

from figures.drawing import bands, families, style
from figures.paper.saf_fig3 import log_ratio
from figures.study import recipes
from figures.study.figure import Figure
from figures.study.figure_data import FigureData
from figures.study.study import Study
from figures.study.tasks import Computation, Training
from figures.study.verdict import Claim
from landscape import statistics
from landscape.registry import register

NOISE = (0.0, 0.2, 0.4)
BUDGETS = ("epochs", "passes", "seconds")
COMPARED = 0.2
"""Label noise at which the three budgets are compared."""
MEASURES: dict[str, dict[str, Any]] = {
    "sam_sharpness": {"rho": 0.05},
    "worst_case_sharpness": {"rho": 0.05},
    "average_sharpness": {},
    "adaptive_sharpness": {"rho": 0.5},
    "hessian_top_eigenvalues": {"k": 1, "tol": 0.01},
    "hessian_trace": {},
    "gradient_norm": {},
}


def methods() -> list[str]:
    """Every registered method; a new file takes part without being listed."""
    from trainers import METHODS

    return list(METHODS)


def training(study: Study, method: str, seed: int, **changes: Any) -> Training:
    """A network with normalization layers: some methods act on those alone."""
    model = study.choose({"model": "mlp:hidden=64x64,batch_norm=true", "epochs": 15}, {})
    return recipes.features(study, method, seed, **model, **changes)


def noisy_runs(study: Study) -> dict[tuple[str, float, int], Training]:
    """(method, label noise, seed) -> training at equal epochs; on clean labels its epochs are kept (`matched-loss`)."""
    keep = study.choose(1, 10)
    return {
        (m, noise, s): training(study, m, s, label_noise=noise, keep_every=0 if noise else keep)
        for m in methods()
        for noise in NOISE
        for s in study.seeds(3, 5)
    }


def measured(study: Study) -> dict[tuple[str, float, int], Computation]:
    """The measures of every one of these runs, on training examples with the labels that were trained on."""
    arguments = {"wanted": MEASURES, "samples": study.samples(2048)}
    return {
        key: Computation("figures.study.computations:measures", (t,), arguments) for key, t in noisy_runs(study).items()
    }


@register("all-methods", source="ours")
class AllMethods(Figure):
    """Every method at equal epochs, passes and seconds, three label noises, with each sharpness and lambda_max."""

    title = "All methods side by side"

    def _budgets(self, study: Study) -> dict[tuple[str, str, int], Training]:
        seeds = study.seeds(3, 5)
        epochs = training(study, "sgd", 0).settings["epochs"]
        extra = {"passes": {"budget_passes": float(epochs)}, "seconds": {"budget_seconds": study.choose(0.6, 3600)}}
        return {
            (b, m, s): training(study, m, s, label_noise=COMPARED, **extra.get(b, {}))
            for b in BUDGETS
            for m in methods()
            for s in seeds
        }

    def plan(self, study: Study) -> list[Any]:
        """Runs at equal epochs with their measures; at one label noise also at equal passes and seconds."""
        return [*measured(study).values(), *self._budgets(study).values()]

    def collect(self, study: Study) -> FigureData:
        """Accuracies and measures."""
        results = {key: study.result(c) for key, c in measured(study).items()}
        runs, budgets, seeds = noisy_runs(study), self._budgets(study), study.seeds(3, 5)
        names = methods()
        facts = {**recipes.describe(*runs.values()), "seeds": len(seeds), "samples": study.samples(2048)}
        numbers = FigureData(facts={**facts, "hyperparameters": "each method's documented defaults"})
        for name, labels in (("method", names), ("noise", NOISE), ("budget", BUDGETS), ("seed", seeds)):
            numbers.axis(name, labels)

        def last(t: Training) -> float:
            return float(study.history(t)["test_accuracy"][-1])

        axes = ("method", "noise", "seed")
        accuracy = [[[last(runs[m, n, s]) for s in seeds] for n in NOISE] for m in names]
        numbers.add("test_accuracy", axes, accuracy, "share of examples")
        equal = [[[last(budgets[b, m, s]) for s in seeds] for m in names] for b in BUDGETS]
        numbers.add("test_accuracy_at_budget", ("budget", "method", "seed"), equal, "share of examples")
        for measure in ("loss", "accuracy", *MEASURES):
            values = [[[float(results[m, n, s][measure]) for s in seeds] for n in NOISE] for m in names]
            unit = "share of examples" if measure == "accuracy" else "nats"
            numbers.add(f"train_{measure}" if measure in ("loss", "accuracy") else measure, axes, values, unit)
        return numbers

    def draw(self, numbers: FigureData) -> Any:
        """A row per method, by family; columns: accuracy by noise, accuracy by budget, three measures at one noise."""
        import matplotlib.pyplot as plt

        names = [str(m) for m in numbers["method"]]
        accuracy = numbers.at("test_accuracy", noise=COMPARED).mean(axis=-1)
        shown = families.rows(names[i] for i in np.argsort(-accuracy, kind="stable"))
        figure, panels = plt.subplots(
            1,
            5,
            figsize=(style.PAGE, 0.22 * shown.count + 1.3),
            sharey=True,
            layout="constrained",
            width_ratios=(1.5, 1.5, 1, 1, 1),
        )

        def dots(axes: Any, values: np.ndarray, ink: str, marker: str, shift: float, text: str = "") -> None:
            mean, half = bands.interval(values, axis=-1)
            y = [shown.methods[m] + shift for m in names]
            look = {"fmt": marker, "color": ink, "markersize": 3, "elinewidth": 0.6, "capsize": 0}
            axes.errorbar(mean, y, xerr=np.nan_to_num(half), label=text, **look)
            axes.axvline(mean[names.index("sgd")], color=ink, linewidth=0.6, linestyle=(0, (1, 2)), zorder=1)

        for i, noise in enumerate(NOISE):
            values = 100 * numbers.at("test_accuracy", noise=noise)
            dots(panels[0], values, style.color(i), "os^"[i], 0.22 * (1 - i), f"{noise:.0%} of labels wrong")
        for i, budget in enumerate(BUDGETS):
            values = 100 * numbers.at("test_accuracy_at_budget", budget=budget)
            dots(panels[1], values, style.color(i + 3), "oDv"[i], 0.22 * (1 - i), f"equal {budget}")
        measures = ("sam_sharpness", "adaptive_sharpness", "hessian_top_eigenvalues")
        for axes, name in zip(panels[2:], measures, strict=True):
            values = numbers.at(name, noise=COMPARED)
            dots(axes, np.where(values > 0, values, np.nan), "#333333", "o", 0.0)
            axes.set_xscale("log")
            style.few_log_ticks(axes)
        families.frame(panels, shown)
        sam, adaptive = (f"$\\rho$ = {MEASURES[m]['rho']:g}" for m in measures[:2])
        titles = ["accuracy by\nlabel noise", "accuracy by\nbudget"]
        titles += ["SAM\nsharpness", "adaptive\nsharpness", "$\\lambda_{max}$ of\nthe Hessian"]
        units = [*["test accuracy (%)"] * 2, f"nats, {sam}", f"nats, {adaptive}", "nats"]
        for axes, title, unit in zip(panels, titles, units, strict=True):
            axes.set(title=title, xlabel=unit)
        columns = [h for axes in panels[:2] for h in axes.get_legend_handles_labels()[0]]
        line = plt.Line2D([], [], color="#333333", linewidth=0.6, linestyle=(0, (1, 2)), label="dotted: SGD's mean")
        notes = "all but the first panel:", f"{COMPARED:.0%} of labels wrong"
        handles = [*columns, line, *(plt.Line2D([], [], linestyle="none", label=note) for note in notes)]
        figure.legend(handles=handles, loc="outside lower center", ncols=3, columnspacing=3)
        return figure

    def judge(self, numbers: FigureData) -> list[Claim]:
        """Sharpness-aware methods against SGD; label noise; equal passes."""
        names = [str(m) for m in numbers["method"]]
        accuracy, sgd = 100 * numbers["test_accuracy"], names.index("sgd")

        def gain(method: str, noise: float) -> np.ndarray:
            at = NOISE.index(noise)
            return accuracy[names.index(method), at] - accuracy[sgd, at]

        passes = 100 * numbers.at("test_accuracy_at_budget", budget="passes")
        few = f"Three seeds by default and {len(names)} methods: most differences stay undecided."
        return [
            *(
                Claim(
                    text=f"{bands.label(m)} is more accurate than SGD at 20% label noise and equal epochs",
                    quantity="difference of test accuracy",
                    published="above 0 (known for SAM)",
                    ours=statistics.mean(gain(m, 0.2), "paired t"),
                    above=0.0,
                    unit="percentage points",
                    note=few,
                )
                for m in ("sam", "asam")
            ),
            Claim(
                text="SAM's gain over SGD grows with label noise",
                quantity="gain at 40% minus gain without noise",
                published="above 0",
                ours=statistics.paired(gain("sam", 0.4), gain("sam", 0.0)),
                above=0.0,
                unit="percentage points",
            ),
            Claim(
                text="SAM is more accurate than SGD at equal passes, 20% label noise",
                quantity="difference of test accuracy",
                published="disputed",
                ours=statistics.paired(passes[names.index("sam")], passes[sgd]),
                above=0.0,
                unit="percentage points",
            ),
            Claim(
                text="SAM lowers SAM sharpness",
                quantity="ln(sharpness of SAM / of SGD) at 20% label noise",
                published="below 0",
                ours=statistics.mean(
                    log_ratio(
                        numbers.at("sam_sharpness", method="sam", noise=COMPARED),
                        numbers.at("sam_sharpness", method="sgd", noise=COMPARED),
                    ),
                    "paired t",
                ),
                below=0.0,
            ),
        ]
