"""Accuracy and speed of K-SAM over K, against SGD, SAM, ESAM and subset-SAM."""

from __future__ import annotations

from typing import Any

import numpy as np

from figures.drawing import bands, style
from figures.study import recipes
from figures.study.figure import Figure
from figures.study.figure_data import FigureData
from figures.study.study import Study
from figures.study.tasks import Computation, Task, Training
from figures.study.verdict import Claim
from landscape import statistics
from landscape.registry import register
from landscape.statistics import Estimate

SHARES = (0.125, 0.25, 0.333, 0.5, 1.0)
OTHERS = ("sgd", "sam", "esam", "subset-sam")
BATCH = 128
"""Of the runs on many classes; of the others it is their recipe's."""
MANY = ("sgd", "sam", "k-sam")
MARKERS = {"sgd": "o", "sam": "^", "esam": "v", "subset-sam": "D", "k-sam": "s"}


@register("ksam-tradeoff", source="K-SAM paper, accuracy and cost over K on images (on text: ksam-text)")
class Tradeoff(Figure):
    """Accuracy and images/s of K-SAM over K against SGD, SAM, ESAM and subset-SAM; the cost on 200 classes."""

    title = "K-SAM: accuracy against speed"

    def _variants(self, study: Study) -> dict[str, tuple[str, dict[str, Any]]]:
        others: dict[str, tuple[str, dict[str, Any]]] = {bands.label(m): (m, {}) for m in OTHERS}
        batch = recipes.images(study, "sgd", 0).settings["batch_size"]
        return others | {f"K = {round(s * batch)}": ("k-sam", {"k": round(s * batch)}) for s in SHARES}

    def _runs(self, study: Study) -> dict[tuple[str, int], Training]:
        return {
            (name, s): recipes.images(study, method, s, arguments=arguments)
            for name, (method, arguments) in self._variants(study).items()
            for s in study.seeds(recipes.SEEDS)
        }

    def _many(self, study: Study) -> dict[tuple[str, int], Training]:
        settings = {"data": "many-classes", "model": "mlp:hidden=128x128", "epochs": 10, "batch_size": BATCH}
        return {
            (m, s): recipes.features(study, m, s, arguments={"k": BATCH // 2} if m == "k-sam" else None, **settings)
            for m in MANY
            for s in study.seeds(recipes.SEEDS)
        }

    def _speed(self, study: Study, specs: list[dict[str, Any]], run: Training) -> Computation:
        settings = {**recipes.timed(run), "epochs": study.epochs(6)}
        if study.preset.settings == "gpu" and settings["data"] == "fashion-mnist":
            settings["data"] = "fashion-mnist:train=10240,test=512"  # the time of a step is the same
        arguments = {"specs": specs, "settings": settings, "rounds": study.rounds(study.choose(6, 3))}
        return Computation("figures.study.computations:epoch_seconds", (), arguments, timed=True)

    def _speeds(self, study: Study) -> tuple[Computation, Computation]:
        few = [{"method": m, "arguments": a, "first": 1} for m, a in self._variants(study).values()]
        many = [{"method": m, "arguments": {"k": BATCH // 2} if m == "k-sam" else {}, "first": 1} for m in MANY]
        one, other = next(iter(self._runs(study).values())), next(iter(self._many(study).values()))
        return self._speed(study, few, one), self._speed(study, many, other)

    def plan(self, study: Study) -> list[Task]:
        """K-SAM at five K, four other methods, many classes, and two interleaved timings."""
        return [*self._runs(study).values(), *self._many(study).values(), *self._speeds(study)]

    def collect(self, study: Study) -> FigureData:
        """Accuracies and speeds."""
        runs, many = self._runs(study), self._many(study)
        seeds, names = study.seeds(recipes.SEEDS), list(self._variants(study))
        few_seconds, many_seconds = (study.result(c)["seconds"] for c in self._speeds(study))
        numbers = FigureData(facts={**recipes.describe(*runs.values()), "seeds": len(seeds), "many classes": 200})
        numbers.axis("variant", names)
        numbers.axis("many_method", MANY)
        numbers.axis("seed", seeds)
        numbers.axis("round", range(few_seconds.shape[1]))

        def last(trainings: dict[tuple[str, int], Training], names: Any) -> list[list[float]]:
            return [[study.history(trainings[n, s])["test_accuracy"][-1] for s in seeds] for n in names]

        numbers.add("test_accuracy", ("variant", "seed"), last(runs, names), "share of examples")
        numbers.add("test_accuracy_many", ("many_method", "seed"), last(many, MANY), "share of examples")
        numbers.add("epoch_seconds", ("variant", "round"), few_seconds, "s")
        numbers.add("epoch_seconds_many", ("many_method", "round"), many_seconds, "s")
        return numbers

    def draw(self, numbers: FigureData) -> Any:
        """Accuracy over relative speed, 10 classes and 200: K-SAM as a curve over K beside the others."""
        import matplotlib.pyplot as plt

        figure, panels = plt.subplots(1, 2, figsize=(style.PAGE, 2.9), layout="constrained")
        parts = (
            ("variant", "test_accuracy", "epoch_seconds", "10 classes"),
            ("many_method", "test_accuracy_many", "epoch_seconds_many", "200 classes"),
        )
        handles: dict[str, Any] = {}
        for axes, (axis, accuracy, seconds, title) in zip(panels, parts, strict=True):
            speed = (100 * numbers[seconds][:1] / numbers[seconds]).mean(axis=-1)
            mean, half = bands.interval(100 * numbers[accuracy], axis=-1)
            curve: dict[int, tuple[float, float]] = {}
            for name, x, y, reach in zip(map(str, numbers[axis]), speed, mean, np.nan_to_num(half), strict=True):
                method = "k-sam" if name.startswith("K = ") else name.lower()
                bar = axes.errorbar([x], [y], [reach], fmt=MARKERS[method], color=bands.color(method), elinewidth=0.9)
                note = f" (numbers: K of {BATCH})" if method == "k-sam" else ""
                handles.setdefault(bands.label(method) + note, bar)
                if method == "k-sam":
                    k = int(name.removeprefix("K = ")) if name != method else BATCH // 2
                    curve[k] = (x, y)
                    look = {"xytext": (0, 3), "textcoords": "offset points", "ha": "center", "va": "bottom"}
                    axes.annotate(str(k), (x, y + reach), color=bands.color(method), fontsize=6.5, **look)
            axes.plot(*zip(*(curve[k] for k in sorted(curve)), strict=True), color=bands.color("k-sam"), linewidth=0.8)
            axes.set(xlabel="images/s in % of SGD's", xlim=(min(speed) - 6, max(speed) + 6), title=title)
            axes.margins(y=0.1)
        panels[0].set_ylabel("test accuracy (%): mean, 95% interval")
        figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=len(handles))
        return figure

    def judge(self, numbers: FigureData) -> list[Claim]:
        """SGD's speed, SAM's accuracy; 65% of SAM's cost on many classes."""
        third = f"K = {round(SHARES[2] * numbers.facts['batch_size'])}"
        seconds = {str(n): numbers.at("epoch_seconds", variant=n) for n in numbers["variant"]}
        accuracy = {str(n): 100 * numbers.at("test_accuracy", variant=n) for n in numbers["variant"]}
        many = {m: numbers.at("epoch_seconds_many", many_method=m) for m in MANY}
        many_accuracy = {m: 100 * numbers.at("test_accuracy_many", many_method=m) for m in MANY}

        def comparable(text: str, ours: Estimate, where: str) -> Claim:
            return Claim(
                text=text,
                quantity=f"difference of test accuracy at {where}",
                published="comparable",
                ours=ours,
                above=-1.0,
                unit="percentage points",
                note="Holds if at most one percentage point is lost.",
            )

        return [
            Claim(
                text="K-SAM is as fast as SGD",
                quantity=f"time of an epoch at {third} (a third of the batch) / that of SGD",
                published="about 1.06",
                ours=statistics.mean(seconds[third] / seconds["SGD"]),
                below=1.15,
                note="Passes over few examples of a small network cost more than their share.",
            ),
            comparable("K-SAM is as accurate as SAM", statistics.paired(accuracy[third], accuracy["SAM"]), third),
            Claim(
                text="K-SAM is more accurate than SGD",
                quantity=f"difference of test accuracy at {third}",
                published="above 0",
                ours=statistics.paired(accuracy[third], accuracy["SGD"]),
                above=0.0,
                unit="percentage points",
            ),
            Claim(
                text="On many classes K-SAM costs about 65% of SAM",
                quantity=f"time of an epoch at K = {BATCH // 2} / that of SAM, 200 classes",
                published="0.65",
                ours=statistics.mean(many["k-sam"] / many["sam"]),
                above=0.55,
                below=0.75,
            ),
            comparable(
                "On many classes K-SAM is as accurate as SAM",
                statistics.paired(many_accuracy["k-sam"], many_accuracy["sam"]),
                f"K = {BATCH // 2}, 200 classes",
            ),
        ]
