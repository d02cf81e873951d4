"""Accuracy and speed of SGD, SAM, ESAM, LookSAM, GSAM, SAF and MESA."""

from __future__ import annotations

from typing import Any

from figures.drawing import bands, style
from figures.paper.saf_fig3 import PUBLISHED as AGAINST_SAM
from figures.paper.saf_fig3 import runs as shared_runs
from figures.study import recipes
from figures.study.figure import Figure
from figures.study.figure_data import FigureData
from figures.study.study import Study
from figures.study.tasks import Computation, Task, Training
from figures.study.verdict import Claim
from landscape import statistics
from landscape.registry import register

METHODS = ("sgd", "sam", "esam", "looksam", "gsam", "saf", "mesa")
PUBLISHED = {
    "sam": (49, 50),
    "esam": (62, 64),
    "looksam": (82, 84),
    "gsam": (47, 49),
    "saf": (98, 100),
    "mesa": (85, 86),
}
"""Images/s in percent of SGD's over the poster's networks (GPU); LookSAM's 82.9 is one number."""
GAINED = {"saf": "+1.4 to +1.8 (ImageNet)", "mesa": "+1.3 to +1.5 (ImageNet)"}
"""Accuracy minus SGD's there."""
ACTING = 3
"""First epoch (0 the first) of a timing in which every method acts: SAF compares with outputs of three epochs ago."""


@register("saf-table1", source="SAF/MESA poster, Table 1")
class SpeedAndAccuracy(Figure):
    """Accuracy and images/s of SGD, SAM, ESAM, LookSAM, GSAM, SAF and MESA."""

    title = "Accuracy and speed of SAM's variants"

    def _runs(self, study: Study) -> dict[tuple[str, int], Training]:
        runs = dict(shared_runs(study))
        for method in METHODS:
            for seed in study.seeds(recipes.SEEDS):
                runs.setdefault((method, seed), recipes.images(study, method, seed))
        return runs

    def _speed(self, study: Study) -> Computation:
        """On the data at hand (quick) or random ImageNet-sized images with ResNet-50 (gpu in bfloat16, paper)."""
        quick = {"data": "digits", "model": "small-cnn", "batch_size": 128}
        paper = {"data": "random-images:n=2048,n_test=16", "model": "resnet50", "batch_size": 128}
        specs = [{"method": m, "arguments": {}, "first": ACTING} for m in METHODS]
        gpu = {**paper, "precision": "bfloat16"} if study.preset.epochs is None else quick
        settings = {**study.choose(quick, paper, gpu=gpu), "epochs": study.epochs(ACTING + 5)}
        arguments = {"specs": specs, "settings": settings, "rounds": study.rounds(study.choose(6, 3, gpu=3))}
        return Computation("figures.study.computations:epoch_seconds", (), arguments, timed=True)

    def plan(self, study: Study) -> list[Task]:
        """The runs of saf-fig3, three more methods, and one interleaved timing."""
        return [*self._runs(study).values(), self._speed(study)]

    def collect(self, study: Study) -> FigureData:
        """Accuracies and speeds."""
        runs, speed = self._runs(study), self._speed(study)
        seeds = study.seeds(recipes.SEEDS)
        seconds = study.result(speed)["seconds"]
        numbers = FigureData(facts={**recipes.describe(*runs.values()), "seeds": len(seeds)})
        numbers.facts["speed measured on"] = speed.arguments["settings"]
        numbers.axis("method", METHODS)
        numbers.axis("seed", seeds)
        numbers.axis("round", range(seconds.shape[1]))
        accuracy = [[study.history(runs[m, s])["test_accuracy"][-1] for s in seeds] for m in METHODS]
        numbers.add("test_accuracy", ("method", "seed"), accuracy, "share of examples")
        numbers.add("epoch_seconds", ("method", "round"), seconds, "s")
        numbers.add("relative_speed", ("method", "round"), 100 * seconds[:1] / seconds, "% of SGD's images/s")
        return numbers

    def draw(self, numbers: FigureData) -> Any:
        """Accuracy on the left, relative speed on the right, beside the published speeds."""
        import matplotlib.pyplot as plt

        figure, (left, right) = plt.subplots(1, 2, figsize=(style.PAGE, 2.9), layout="constrained", sharey=True)
        heights, inks = list(range(len(METHODS)))[::-1], [bands.color(m) for m in METHODS]
        bands.points(left, heights, [100 * numbers.at("test_accuracy", method=m) for m in METHODS], inks)
        bands.points(right, heights, [numbers.at("relative_speed", method=m) for m in METHODS], inks)
        at = {m: h for m, h in zip(METHODS, heights, strict=True) if m in PUBLISHED}
        bands.published(right, list(at.values()), [sum(PUBLISHED[m]) / 2 for m in at])
        left.set_yticks(heights, [bands.label(m) for m in METHODS])
        left.set(xlabel="test accuracy (%)", ylabel="method", title="accuracy", ylim=(-0.6, len(METHODS) - 0.4))
        right.set(xlabel="images/s in % of SGD's", xlim=(0, max(125, 1.05 * numbers["relative_speed"].max())))
        right.set_title("speed")
        right.axvline(100, color="#bbbbbb", linewidth=0.7, zorder=0)
        for axes in (left, right):
            axes.grid(True, axis="y")
            axes.tick_params(axis="y", length=0)
        dots = f"left {len(numbers['seed'])} seeds, right {len(numbers['round'])} rounds"
        bands.explain_points(figure, dots, "the poster's speed (GPU, large networks)")
        return figure

    def judge(self, numbers: FigureData) -> list[Claim]:
        """Published speeds within a tenth; SAF's and MESA's accuracy against SAM's."""
        claims = []
        for method, (low, high) in PUBLISHED.items():
            published = f"{low}-{high}%"
            claims.append(
                Claim(
                    text=f"{bands.label(method)} has {published} of SGD's speed",
                    quantity="images/s relative to SGD, interleaved rounds",
                    published=published,
                    ours=statistics.mean(numbers.at("relative_speed", method=method)),
                    above=low - 10.0,
                    below=high + 10.0,
                    unit="%",
                    note="Holds within 10 percentage points. The poster measured on GPUs with large networks; rows of "
                    "ESAM, LookSAM and GSAM are probably quoted there.",
                )
            )
        accuracy = {m: 100 * numbers.at("test_accuracy", method=m) for m in METHODS}
        for method in ("saf", "mesa"):
            for other, above, text in (
                ("sgd", 0.0, "is more accurate than SGD"),
                ("sam", -1.0, "is as accurate as SAM"),
            ):
                claims.append(
                    Claim(
                        text=f"{bands.label(method)} {text}",
                        quantity="difference of test accuracy",
                        published=GAINED[method] if other == "sgd" else AGAINST_SAM[method],
                        ours=statistics.paired(accuracy[method], accuracy[other]),
                        above=above,
                        unit="percentage points",
                        note="" if other == "sgd" else "Holds if at most one percentage point is lost.",
                    )
                )
        return claims
