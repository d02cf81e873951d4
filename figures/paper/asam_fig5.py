"""Test error against test variance: the toy experiment of the ASAM report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from figures.drawing import bands, style
from figures.study import recipes
from figures.study.figure import Figure
from figures.study.figure_data import FigureData
from figures.study.study import Study
from figures.study.tasks import Computation, Training
from figures.study.verdict import Claim
from landscape import statistics
from landscape.registry import register

if TYPE_CHECKING:
    from figures.study.tasks import Machine

TRAIN = (1, 5, 15, 25, 30)
TEST = (0.25, 1, 2.5, 5, 10, 15, 20, 25, 30, 40, 50, 60, 80, 100)
METHODS: dict[str, dict[str, Any]] = {"adam": {}, "sam": {"rho": 0.5}, "asam": {"rho": 0.5, "eta": 0.01}}
LOOKS: dict[str, dict[str, Any]] = {
    "adam": {"linewidth": 1.3, "linestyle": (0, (4, 2)), "zorder": 4},
    "sam": {"linewidth": 1.3},
    "asam": {"linewidth": 2.4, "alpha": 0.75},
}
"""Of the means: where Adam and ASAM have the same error, both are seen."""
FAR = 8 / 3
"""The report's thresholds at training variance 15, 5 and 40, as multiples of it: 1/3 and 8/3."""


def shifted_errors(run: Path, *, variances: list[float], seed: int, n_test: int, machine: Machine) -> dict[str, Any]:
    """Test error at every test variance; inputs are standardized as in training."""
    from trainers.datasets import load_data
    from trainers.loop.evaluation import evaluate

    subject = machine.subject(run / "ckpt.pt", samples=2)
    arguments = {**subject.metadata["data"]["arguments"], "n_test": n_test, "seed": seed}
    errors = []
    for variance in variances:
        data = load_data("toy2d", **{**arguments, "test_variance": float(variance)}).to(machine.device)
        errors.append(1 - evaluate(subject.model, data)[1])
    return {"error": errors}


@register("asam-fig5", source="ASAM report, Figure 5 (a-e)")
class ShiftedVariance(Figure):
    """Test error over the test variance, for Adam, SAM and ASAM trained at five variances."""

    title = "Generalization to other variances: Adam, SAM, ASAM"

    def _seeds(self, study: Study) -> list[int]:
        return study.seeds(5, 20)

    def _training(self, study: Study, method: str, variance: float, seed: int) -> Training:
        return study.training(
            method,
            seed,
            arguments=METHODS[method],
            data=f"toy2d:variance={variance},n=2000,n_test=1000",
            model="table2-mlp",
            epochs=200,
            batch_size=200,
            base="adam",
            lr=0.01,
            save_every=50,
        )

    def _errors(self, study: Study) -> dict[tuple[str, float, int], Computation]:
        n_test = study.choose(10_000, 100_000)
        return {
            (m, v, s): Computation(
                f"{__name__}:shifted_errors",
                (self._training(study, m, v, s),),
                {"variances": list(TEST), "seed": s, "n_test": n_test},
            )
            for m in METHODS
            for v in TRAIN
            for s in self._seeds(study)
        }

    def plan(self, study: Study) -> list[Computation]:
        """A training and its errors for every method, training variance and seed."""
        return list(self._errors(study).values())

    def collect(self, study: Study) -> FigureData:
        """Errors, and the Bayes error."""
        from trainers.data.toy2d import bayes_error

        computations = self._errors(study)
        seeds = self._seeds(study)
        one = next(iter(computations.values()))
        facts = recipes.describe(*(c.trainings[0] for c in computations.values()))
        numbers = FigureData(
            facts={
                "data": "toy2d, five training variances",
                **facts,
                "test points": one.arguments["n_test"],
                "seeds": len(seeds),
            }
        )
        for name, values in (("method", METHODS), ("train_variance", TRAIN), ("seed", seeds), ("test_variance", TEST)):
            numbers.axis(name, values)
        errors = [[[study.result(computations[m, v, s])["error"] for s in seeds] for v in TRAIN] for m in METHODS]
        axes = ("method", "train_variance", "seed", "test_variance")
        numbers.add("test_error", axes, errors, "share of test points")
        numbers.add("bayes_error", ("test_variance",), [bayes_error(v) for v in TEST], "share of test points")
        return numbers

    def draw(self, numbers: FigureData) -> Any:
        """One panel per training variance: the mean over seeds, and every seed; some runs learn nothing at all."""
        import matplotlib.pyplot as plt

        figure, panels = plt.subplots(2, 3, figsize=(style.PAGE, 4.0), sharex=True, sharey=True, layout="constrained")
        x = numbers["test_variance"]
        for axes, variance in zip(panels.flat, numbers["train_variance"], strict=False):
            axes.fill_between(x, 100 * numbers["bayes_error"], color="#e3e6ea", linewidth=0)
            axes.axvline(variance, color="#8a9099", linewidth=0.7, zorder=1)
            for method in numbers["method"]:
                values = 100 * numbers.at("test_error", method=method, train_variance=variance)
                ink = bands.color(method)
                axes.plot(x, values.T, color=ink, linewidth=0.5, alpha=0.4)
                axes.plot(x, values.mean(axis=0), color=ink, **LOOKS[str(method)])
            axes.set_title(f"trained at $\\sigma^2$ = {variance}")
            axes.set_xscale("log")
        for axes in (*panels[1, :2], panels[0, 2]):
            axes.set_xlabel("test variance $\\sigma^2$ (coordinate units$^2$)")
            axes.tick_params(labelbottom=True)
        panels[0, 0].set(xlim=(x[0], x[-1]), ylim=(-1.5, 62))
        for axes in panels[:, 0]:
            axes.set_ylabel("test error (%)")
        legend = panels[1, 2]
        legend.axis("off")
        handles: list[Any] = [
            plt.Line2D([], [], color=bands.color(m), label=bands.label(m), **LOOKS[m])
            for m in map(str, numbers["method"])
        ]
        handles.append(plt.Rectangle((0, 0), 1, 1, color="#e3e6ea", label="below the Bayes error"))
        handles.append(plt.Line2D([], [], color="#8a9099", lw=0.7, label="training variance"))
        title = f"thick: mean of {len(numbers['seed'])} seeds; thin: each"
        legend.legend(handles=handles, loc="center", title=title, title_fontsize=6.5, handlelength=2.6)
        return figure

    def judge(self, numbers: FigureData) -> list[Claim]:
        """The report's four statements on Figure 5, over all five training variances."""
        error = 100 * numbers["test_error"]
        ratio = numbers["test_variance"][None] / numbers["train_variance"][:, None]
        adam, sam, asam = (error[list(METHODS).index(m)] for m in ("adam", "sam", "asam"))
        small, far = ratio < 1 / 3, ratio > FAR
        around = ~small & ~far

        failed = ", ".join(f"{bands.label(m)} {(error[i, ..., 0] > 25).sum()}" for i, m in enumerate(METHODS))
        lost = (
            f"Of {sam[..., 0].size} runs each, above 25% error at the smallest test variance (not learned): {failed}."
        )

        def mean(values: np.ndarray, where: np.ndarray) -> np.ndarray:
            """(train, seed, test) -> seed: over the test variances of each training variance, then over these."""
            rows = [values[i][:, w].mean(axis=1) for i, w in enumerate(where) if w.any()]
            return np.mean(rows, axis=0)

        def best(name: str, one: np.ndarray, others: list[np.ndarray], where: np.ndarray, range_: str) -> Claim:
            return Claim(
                text=f"{name} has the lowest test error {range_}",
                quantity=f"error of {name} minus that of the lower of the other two",
                published="lowest",
                ours=statistics.against_each(mean(one, where), [mean(o, where) for o in others]),
                below=0.0,
                unit="percentage points",
                note="All five training variances count alike. 'Lowest' is tested against each rival, paired by seed: "
                "supported where all show it, each at 95%; not supported where one is lower, at 97.5% for each of the "
                f"two (Bonferroni). {lost}",
            )

        wide = ratio >= 1
        gain = adam - (sam + asam) / 2
        variance = numbers["train_variance"].tolist()
        noisy, clean = (gain[variance.index(v)][:, wide[variance.index(v)]].mean(axis=1) for v in (30, 5))
        return [
            best("Adam", adam, [sam, asam], small, "below a third of the training variance"),
            best("ASAM", asam, [adam, sam], around, "between 1/3 and 8/3 of the training variance"),
            best("SAM", sam, [adam, asam], far, "above 8/3 of the training variance"),
            Claim(
                text="SAM and ASAM generalize better than Adam",
                quantity="error of Adam minus the mean of SAM and ASAM, at and above the training variance",
                published="above 0",
                ours=statistics.mean(mean(gain, wide), "paired t"),
                above=0.0,
                unit="percentage points",
            ),
            Claim(
                text="The gain is smaller when the training data are noisy",
                quantity="that difference trained at variance 30 minus trained at 5",
                published="below 0",
                ours=statistics.paired(noisy, clean),
                below=0.0,
                unit="percentage points",
            ),
        ]
