"""Best test accuracy and time per epoch of Adam, SAM and ASAM."""

from __future__ import annotations

from typing import Any

from figures.drawing import bands, style
from figures.paper.asam_fig7 import BASES, METHODS, accuracies, accuracy_runs
from figures.study import recipes
from figures.study.figure import Figure
from figures.study.figure_data import FigureData
from figures.study.study import Study
from figures.study.tasks import Computation, Task
from figures.study.verdict import Claim
from landscape import statistics
from landscape.registry import register

PUBLISHED = {"base": 92.3, "sam": 96.19, "asam": 96.44}
MINUTES = {"base": 4.5, "sam": 6.5, "asam": 9.0}
ROUNDS = 5


@register("asam-table1", source="ASAM report, Table I and section III")
class BestAccuracy(Figure):
    """Best test accuracy after training, and seconds per epoch, for Adam, SAM and ASAM on both bases.

    On the data of asam-fig7.
    """

    title = "Best test accuracy and time per epoch"

    def _speed(self, study: Study) -> Computation:
        run = recipes.photographs(study, "adam", 0)
        settings = recipes.timed(run)
        short = settings["data"] == "digits"  # its epochs take milliseconds
        specs = [
            {"method": base if m == "base" else m, "arguments": {}, "settings": {"base": base}, "first": 1}
            for base in BASES
            for m in METHODS
        ]
        arguments = {
            "specs": specs,
            "settings": {**settings, "epochs": 3 if short else 2},
            "rounds": study.rounds(study.choose(ROUNDS, 3) if short else 4),
        }
        return Computation("figures.study.computations:epoch_seconds", (), arguments, timed=True)

    def note(self, study: Study) -> str:
        """Digits stand for Fashion-MNIST where its files are missing."""
        return recipes.lacking(study)

    def plan(self, study: Study) -> list[Task]:
        """The runs of asam-fig7, and one interleaved timing."""
        return [*accuracy_runs(study).values(), self._speed(study)]

    def collect(self, study: Study) -> FigureData:
        """Best and last accuracy, seconds per epoch."""
        numbers = accuracies(study)
        test = numbers["test_accuracy"]
        axes = ("base", "method", "seed")
        numbers.add("best_accuracy", axes, test.max(axis=-1), "share of examples")
        numbers.add("last_accuracy", axes, test[..., -1], "share of examples")
        seconds = study.result(self._speed(study))["seconds"]
        numbers.axis("round", range(seconds.shape[1]))
        numbers.add("epoch_seconds", ("base", "method", "round"), seconds.reshape(2, 3, -1), "s")
        for name in ("train_accuracy", "test_accuracy", "epoch"):
            numbers.remove(name)
        return numbers

    def draw(self, numbers: FigureData) -> Any:
        """Accuracy on the left, cost on the right, a row for each line of the table."""
        import matplotlib.pyplot as plt

        figure, (left, right) = plt.subplots(1, 2, figsize=(style.PAGE, 2.8), layout="constrained", sharey=True)
        cells = [(i, j) for i in range(len(BASES)) for j in range(len(METHODS))]
        names = [BASES[i] if METHODS[j] == "base" else METHODS[j] for i, j in cells]
        inks, heights = [bands.color(n) for n in names], [5.6, 4.6, 3.6, 2, 1, 0]
        bands.points(left, heights, [100 * numbers["best_accuracy"][i, j] for i, j in cells], inks)
        cost = [numbers["epoch_seconds"][i, j] / numbers["epoch_seconds"][i, 0] for i, j in cells]
        bands.points(right, heights, cost, inks)
        bands.published(right, heights[: len(METHODS)], [MINUTES[m] / MINUTES["base"] for m in METHODS])
        words = [bands.label(n) for n in names]
        words = [w if j == 0 else f"{w} on {words[i * len(METHODS)]}" for w, (i, j) in zip(words, cells, strict=True)]
        left.set_yticks(heights, words)
        left.set(xlabel="best test accuracy (%)", ylabel="method", title="accuracy", ylim=(-0.6, 6.2))
        right.set(xlabel="time of an epoch / that of the base alone", title="cost", xlim=(0.8, None))
        for axes in (left, right):
            axes.grid(True, axis="y")
            axes.tick_params(axis="y", length=0)
        for whole in (1, 2):
            right.axvline(whole, color="#bbbbbb", linewidth=0.7, zorder=0)
        dots = f"left {len(numbers['seed'])} seeds, right {len(numbers['round'])} rounds"
        bands.explain_points(figure, dots, "the report's times (WRN-28-10)")
        return figure

    def judge(self, numbers: FigureData) -> list[Claim]:
        """The table's order, confounded as published and unconfounded; the times."""
        best = {
            (b, m): 100 * numbers["best_accuracy"][i, j] for i, b in enumerate(BASES) for j, m in enumerate(METHODS)
        }
        seconds = {(b, m): numbers["epoch_seconds"][i, j] for i, b in enumerate(BASES) for j, m in enumerate(METHODS)}
        peak = "The best epoch is chosen on the test set, as in the report: accuracies are slightly too high."
        optimizer = statistics.paired(best["sgd", "base"], best["adam", "base"])
        mixed = "Adam alone against SAM and ASAM on SGD, the report's probable comparison. SGD alone is "
        mixed += f"{optimizer.value:+.2f} [{optimizer.low:+.2f}, {optimizer.high:+.2f}] points from Adam here. {peak}"

        def better(one: tuple[str, str], other: tuple[str, str], published: str, note: str) -> Claim:
            names = [
                bands.label(b if m == "base" else m) + ("" if m == "base" else f" on {bands.label(b)}")
                for b, m in (one, other)
            ]
            return Claim(
                text=f"{names[0]} has a higher best test accuracy than {names[1]}",
                quantity="difference of best test accuracy",
                published=published,
                ours=statistics.paired(best[one], best[other]),
                above=0.0,
                unit="percentage points",
                note=note,
            )

        def slower(method: str, base: str) -> Claim:
            published = MINUTES[method] / MINUTES["base"]
            return Claim(
                text=f"An epoch of {method.upper()} takes {published:.2f} times as long as one of {bands.label(base)}",
                quantity="ratio of interleaved epoch times",
                published=f"{published:.2f} (WRN-28-10, RTX 3060)",
                ours=statistics.mean(seconds[base, method] / seconds[base, "base"]),
                above=0.9 * published,
                below=1.1 * published,
                note="Holds within 10% of the published ratio. Both methods make two forward and two backward passes.",
            )

        return [
            better(("sgd", "sam"), ("adam", "base"), "+3.89", mixed),
            better(("sgd", "asam"), ("adam", "base"), "+4.14", mixed),
            better(("sgd", "asam"), ("sgd", "sam"), "+0.25 (one run)", peak),
            *(better((b, m), (b, "base"), "above 0", peak) for b in BASES for m in ("sam", "asam")),
            *(slower(m, "adam") for m in ("sam", "asam")),
        ]
