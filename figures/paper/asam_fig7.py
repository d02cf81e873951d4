"""Accuracy over the epochs for Adam, SAM and ASAM, on both base optimizers."""

from __future__ import annotations

from typing import Any

from figures.drawing import bands, style
from figures.study import recipes
from figures.study.figure import Figure
from figures.study.figure_data import FigureData
from figures.study.study import Study
from figures.study.tasks import Training
from figures.study.verdict import Claim
from landscape import statistics
from landscape.registry import register

BASES = ("adam", "sgd")
METHODS = ("base", "sam", "asam")


def accuracy_runs(study: Study) -> dict[tuple[str, str, int], Training]:
    """(base, method, seed) -> training; the method "base" is the base optimizer alone."""
    return {
        (base, m, s): recipes.photographs(study, base if m == "base" else m, s, base=base)
        for base in BASES
        for m in METHODS
        for s in study.seeds(recipes.SEEDS)
    }


def accuracies(study: Study) -> FigureData:
    """Train and test accuracy of every epoch."""
    runs = accuracy_runs(study)
    seeds = study.seeds(recipes.SEEDS)
    histories = {key: study.history(t) for key, t in runs.items()}
    epochs = histories["adam", "base", seeds[0]]["epoch"].astype(int)
    numbers = FigureData(facts={**recipes.describe(*runs.values()), "seeds": len(seeds)})
    if recipes.lacking(study):
        numbers.facts["in place of"] = "Fashion-MNIST, whose files are not at hand"
    for name, values in (("base", BASES), ("method", METHODS), ("seed", seeds), ("epoch", epochs)):
        numbers.axis(name, values)
    for split in ("train", "test"):
        column = f"{split}_accuracy"
        curves = [[[histories[b, m, s][column] for s in seeds] for m in METHODS] for b in BASES]
        numbers.add(column, ("base", "method", "seed", "epoch"), curves, "share of examples")
    return numbers


@register("asam-fig7", source="ASAM report, Figure 7")
class AccuracyCurves(Figure):
    """Train and test accuracy per epoch for Adam, SAM and ASAM; the SGD base, which the report lacks, beside.

    Preset quick: a small ResNet on a part of Fashion-MNIST where its files are at hand (`landscape data fetch
    fashion-mnist`), else a small network on digits; gpu: ResNet-18 on the CIFAR-10 images in `cifar10.npz` of the data
    directory (arrays x_train, y_train, x_test, y_test), else on Fashion-MNIST; paper: WRN-28-10 on CIFAR-10.
    """

    title = "Train and test accuracy per epoch"

    def note(self, study: Study) -> str:
        """Digits stand for Fashion-MNIST where its files are missing."""
        return recipes.lacking(study)

    def plan(self, study: Study) -> list[Training]:
        """Three methods on two bases."""
        return list(accuracy_runs(study).values())

    def collect(self, study: Study) -> FigureData:
        """Histories of all runs."""
        return accuracies(study)

    def draw(self, numbers: FigureData) -> Any:
        """One row per base, one panel per method."""
        import matplotlib.pyplot as plt

        figure, panels = plt.subplots(2, 3, figsize=(style.PAGE, 3.6), sharex=True, sharey=True, layout="constrained")
        late = numbers["epoch"] >= numbers["epoch"].max() / 4
        lowest = 100 * min(numbers[f"{s}_accuracy"][..., late].min() for s in ("train", "test"))
        for row, base in zip(panels, numbers["base"], strict=True):
            for axes, method in zip(row, numbers["method"], strict=True):
                name = bands.label(base if method == "base" else method)
                x = numbers["epoch"]
                for split, ink, dash in (
                    ("train", "#777777", "--"),
                    ("test", bands.color(base if method == "base" else method), "-"),
                ):
                    values = 100 * numbers.at(f"{split}_accuracy", base=base, method=method)
                    bands.band(axes, x, values, ink, linestyle=dash)
                train, test = (
                    100 * numbers.at(f"{s}_accuracy", base=base, method=method)[:, -1].mean() for s in ("train", "test")
                )
                alone = "alone" if method == "base" else f"on {bands.label(base)}"
                axes.set_title(f"{name} {alone}")
                axes.text(
                    0.97,
                    0.06,
                    f"train (dashed) {train:.1f}%\ntest (solid) {test:.1f}%",
                    transform=axes.transAxes,
                    ha="right",
                    va="bottom",
                    fontsize=6.5,
                )
        start = max(0, lowest - 3)  # the first epochs of an image network would take most of the axis
        panels[0, 0].set_ylim(start, 100.6)
        for axes in panels[1]:
            axes.set_xlabel("epoch")
        for axes in panels[:, 0]:
            axes.set_ylabel(f"accuracy (%, from {start:.0f})")
        return figure

    def judge(self, numbers: FigureData) -> list[Claim]:
        """A smaller gap between training and test accuracy with SAM and ASAM."""
        train = 100 * numbers["train_accuracy"][..., -1]
        gap = train - 100 * numbers["test_accuracy"][..., -1]

        def claim(base: str, method: str, other: str, note: str = "") -> Claim:
            cells = (BASES.index(base), METHODS.index(method)), (BASES.index(other), METHODS.index("base"))
            own_gap, reference = (gap[p] for p in cells)
            learned = " against ".join(f"{train[p].mean():.1f}%" for p in cells)
            return Claim(
                text=f"{method.upper()} on {bands.label(base)} has a smaller train-test gap than {bands.label(other)}",
                quantity="difference of (train - test accuracy) at the last epoch",
                published="below 0",
                ours=statistics.paired(own_gap, reference),
                below=0.0,
                unit="percentage points",
                note=f"{note} Training accuracy {learned}: who has learned less has a smaller gap.".strip(),
            )

        mixed = "Optimizer and method change together, as they probably do in the report (Samsung's script uses SGD)."
        return [
            *(claim("sgd", m, "adam", mixed) for m in ("sam", "asam")),
            *(claim(b, m, b) for b in BASES for m in ("sam", "asam")),
        ]
