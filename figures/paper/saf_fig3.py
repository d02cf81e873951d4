"""Training loss and SAM sharpness per epoch for SGD, SAM, SAF and MESA."""

from __future__ import annotations

from typing import Any

from figures.drawing import bands, style
from figures.study import recipes
from figures.study.figure import Figure
from figures.study.figure_data import FigureData
from figures.study.study import Study
from figures.study.tasks import Computation, Training
from figures.study.verdict import Claim
from landscape import statistics
from landscape.registry import register

METHODS = ("sgd", "sam", "saf", "mesa")
PUBLISHED = {"saf": "+0.6 to +0.9 (ImageNet)", "mesa": "+0.5 to +0.7 (ImageNet)"}
"""Accuracy minus SAM's in the poster's Table 1, smallest and largest over its four networks."""
RHO = 0.05
SAMPLES = 1024


def runs(study: Study) -> dict[tuple[str, int], Training]:
    """(method, seed) -> training, some of its epochs kept."""
    return {(m, s): recipes.images(study, m, s) for m in METHODS for s in study.seeds(recipes.SEEDS)}


def kept_epochs(training: Training) -> list[int]:
    """Epochs whose checkpoints are kept."""
    keep = training.settings["keep_every"]
    return list(range(keep, training.settings["epochs"] + 1, keep))


@register("saf-fig3", source="SAF/MESA poster, Figure 3")
class Convergence(Figure):
    """Training loss and SAM sharpness per epoch for SGD, SAM, SAF and MESA."""

    title = "Convergence and sharpness during training"

    def _sharpness(self, study: Study) -> dict[tuple[str, int], Computation]:
        arguments = {"wanted": {"sam_sharpness": {"rho": RHO}}, "samples": study.samples(SAMPLES)}
        return {
            key: Computation("figures.study.computations:along", (t,), {**arguments, "epochs": kept_epochs(t)})
            for key, t in runs(study).items()
        }

    def plan(self, study: Study) -> list[Computation]:
        """Trainings with kept epochs, and the sharpness at these."""
        return list(self._sharpness(study).values())

    def collect(self, study: Study) -> FigureData:
        """Losses and sharpness by method, seed and epoch."""
        trainings, sharpness = runs(study), self._sharpness(study)
        seeds = study.seeds(recipes.SEEDS)
        histories = {key: study.history(t) for key, t in trainings.items()}
        any_run = trainings["sgd", seeds[0]]
        numbers = FigureData(facts={**recipes.describe(*trainings.values()), "seeds": len(seeds)})
        numbers.facts.update({"rho": RHO, "samples": study.samples(SAMPLES), "BatchNorm": "frozen running statistics"})
        numbers.axis("method", METHODS)
        numbers.axis("seed", seeds)
        numbers.axis("epoch", histories["sgd", seeds[0]]["epoch"].astype(int))
        numbers.axis("kept_epoch", kept_epochs(any_run))
        axes = ("method", "seed")
        loss = [[histories[m, s]["train_loss"] for s in seeds] for m in METHODS]
        numbers.add("train_loss", (*axes, "epoch"), loss, "nats")
        rise = [[study.result(sharpness[m, s])["sam_sharpness"] for s in seeds] for m in METHODS]
        numbers.add("sam_sharpness", (*axes, "kept_epoch"), rise, "nats")
        last = [[histories[m, s]["test_accuracy"][-1] for s in seeds] for m in METHODS]
        numbers.add("test_accuracy", axes, last, "share of examples")
        return numbers

    def draw(self, numbers: FigureData) -> Any:
        """Loss on the left, sharpness on the right."""
        import matplotlib.pyplot as plt

        figure, panels = plt.subplots(1, 2, figsize=(style.PAGE, 2.5), layout="constrained")
        inks = {bands.label(m): bands.color(m) for m in METHODS}
        parts = (
            ("train_loss", "epoch", "training loss (nats)"),
            ("sam_sharpness", "kept_epoch", "SAM sharpness (nats)"),
        )
        for axes, (name, x, text) in zip(panels, parts, strict=True):
            ends = {}
            for method in METHODS:
                values = numbers.at(name, method=method)
                ends[bands.label(method)] = bands.band(axes, numbers[x], values, bands.color(method), log=True)
            axes.set(xlabel="epoch", ylabel=text, yscale="log")
            style.whole_epochs(axes)
            bands.name_lines(axes, ends, inks)
        panels[0].set_title("(a) loss on the training batches: geometric mean")
        panels[1].set_title(f"(b) L(w + $\\epsilon$) - L(w), $\\rho$ = {numbers.facts['rho']:g}")
        return figure

    def judge(self, numbers: FigureData) -> list[Claim]:
        """Convergence not slowed, sharpness lowered."""
        import numpy as np

        loss, rise = numbers["train_loss"], numbers["sam_sharpness"]
        of = METHODS.index
        accuracy = 100 * numbers["test_accuracy"]
        claims = []
        for method in ("saf", "mesa"):
            name = bands.label(method)
            # From the training accuracy's point of view the loss that counts is the plain one, averaged over the run.
            claims.append(
                Claim(
                    text=f"{name} does not slow convergence",
                    quantity=f"mean over the epochs of ln(training loss of {name} / of SGD)",
                    published="curves coincide",
                    ours=statistics.mean(np.log(loss[of(method)] / loss[of("sgd")]).mean(axis=-1), "paired t"),
                    below=0.1,
                    note="Holds if the training loss is at most about 10% above SGD's, averaged over the run.",
                )
            )
            claims.append(
                Claim(
                    text=f"{name} lowers SAM's sharpness",
                    quantity=f"ln(sharpness of {name} / of SGD) at the end",
                    published="below 0",
                    ours=statistics.mean(log_ratio(rise[of(method)][:, -1], rise[of("sgd")][:, -1]), "paired t"),
                    below=0.0,
                )
            )
            claims.append(
                Claim(
                    text=f"{name} keeps SAM's accuracy",
                    quantity=f"test accuracy of {name} minus that of SAM",
                    published=PUBLISHED[method],
                    ours=statistics.paired(accuracy[of(method)], accuracy[of("sam")]),
                    above=-1.0,
                    unit="percentage points",
                    note="Holds if at most one percentage point is lost.",
                )
            )
        return claims


def log_ratio(a: Any, b: Any) -> Any:
    """ln(a / b), nan where either is not positive."""
    import numpy as np

    a, b = np.asarray(a), np.asarray(b)
    good = (a > 0) & (b > 0)
    return np.where(good, np.log(np.where(good, a, 1) / np.where(good, b, 1)), np.nan)
