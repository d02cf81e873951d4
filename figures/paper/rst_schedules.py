"""Accuracy against cost for the scheduling functions of RST."""

from __future__ import annotations

from typing import Any

import numpy as np

from figures.drawing import bands, style
from figures.study.figure import Figure
from figures.study.figure_data import FigureData
from figures.study.study import Study
from figures.study.tasks import Training
from figures.study.verdict import Claim
from landscape import statistics
from landscape.registry import register

SCHEDULES = ("constant", "piecewise1", "piecewise2", "piecewise3", "linear1", "linear2", "trigonometric")
PARAMETERS = (0.25, 0.5, 0.75)
ENDS = ("sgd", "sam")


def _kinds(study: Study) -> dict[str, dict[str, Any]]:
    """The two kinds of network that the paper has."""
    quick = {
        "CNN": {"model": "small-cnn:channels=8x16x32", "base": "sgd", "lr": 0.05},
        "ViT": {"model": "vit-tiny:dim=32,depth=2,heads=2,patch=4", "base": "adamw", "lr": 0.003},
    }
    paper = {
        "CNN": {"model": "resnet18", "base": "sgd", "lr": 0.1},
        "ViT": {"model": "vit-tiny", "base": "adamw", "lr": 0.001},
    }
    return study.choose(quick, paper)


@register("rst-schedules", source="RST paper, the study of scheduling functions")
class Schedules(Figure):
    """Accuracy against mean passes per step for RST's scheduling functions, on a CNN and a ViT; SGD and SAM as ends."""

    title = "RST: what the schedule buys"

    def _seeds(self, study: Study) -> list[int]:
        return study.seeds(3, 5)

    def _run(self, study: Study, kind: str, method: str, seed: int, **arguments: Any) -> Training:
        data = study.choose({"data": "digits", "epochs": 20}, {"data": "cifar10", "epochs": 200})
        settings = {**data, "batch_size": study.choose(128, 256), "save_every": 20, **_kinds(study)[kind]}
        return study.training(method, seed, arguments=arguments, **settings)

    def _runs(self, study: Study) -> dict[tuple[str, str, float, int], Training]:
        runs = {}
        for kind in _kinds(study):
            for s in self._seeds(study):
                for end in ENDS:
                    runs[kind, end, 0.0, s] = self._run(study, kind, end, s)
                for schedule in SCHEDULES:
                    for p in PARAMETERS:
                        runs[kind, schedule, p, s] = self._run(study, kind, "rst", s, p=p, p_schedule=schedule)
        return runs

    def plan(self, study: Study) -> list[Training]:
        """Seven schedules at three parameters, and both ends, on two networks."""
        return list(self._runs(study).values())

    def collect(self, study: Study) -> FigureData:
        """Accuracy, passes per step, seconds."""
        runs = {key: study.history(t) for key, t in self._runs(study).items()}
        trainings = self._runs(study)
        seeds, kinds = self._seeds(study), list(_kinds(study))
        shared = next(iter(trainings.values())).settings
        facts = {k: shared[k] for k in ("data", "epochs", "batch_size")}
        numbers = FigureData(facts={**facts, "models": _kinds(study), "rho": 0.05, "seeds": len(seeds)})
        numbers.axis("network", kinds)
        numbers.axis("schedule", SCHEDULES)
        numbers.axis("p", PARAMETERS)
        numbers.axis("end", ENDS)
        numbers.axis("seed", seeds)

        def passes(h: dict[str, np.ndarray], base: dict[str, np.ndarray]) -> float:
            """Forward-backward passes per step: an SGD step is 1."""
            cost = h["forward_examples"][-1] + 2 * h["backward_examples"][-1]
            return float(cost / (base["forward_examples"][-1] + 2 * base["backward_examples"][-1]))

        quantities = {
            "test_accuracy": (lambda h, base: h["test_accuracy"][-1], "share of examples"),
            "passes": (passes, "forward-backward passes per step"),
            "seconds": (lambda h, base: h["seconds"][-1], "s"),
        }
        for name, (function, unit) in quantities.items():
            grid = [
                [
                    [[function(runs[k, c, p, s], runs[k, "sgd", 0.0, s]) for s in seeds] for p in PARAMETERS]
                    for c in SCHEDULES
                ]
                for k in kinds
            ]
            numbers.add(name, ("network", "schedule", "p", "seed"), grid, unit)
            ends = [
                [[function(runs[k, e, 0.0, s], runs[k, "sgd", 0.0, s]) for s in seeds] for e in ENDS] for k in kinds
            ]
            numbers.add(f"{name}_of_ends", ("network", "end", "seed"), ends, unit)
        return numbers

    def draw(self, numbers: FigureData) -> Any:
        """One panel per network, one color and marker per schedule."""
        import matplotlib.pyplot as plt

        figure, panels = plt.subplots(1, 2, figsize=(style.PAGE, 3.0), layout="constrained")
        markers = "osD^v<>"
        for axes, network in zip(panels, numbers["network"], strict=True):
            base = bands.label(numbers.facts["models"][str(network)]["base"])
            ends = [numbers.at(f"{n}_of_ends", network=network) for n in ("passes", "test_accuracy")]
            at, mean = ends[0].mean(axis=-1), 100 * ends[1].mean(axis=-1)
            _, half = bands.interval(100 * ends[1], axis=-1)
            axes.plot(at, mean, color="#999999", linewidth=0.8, zorder=1)
            axes.errorbar(at, mean, np.nan_to_num(half), fmt="*", color="black", markersize=6, elinewidth=0.8, zorder=2)
            for name, x, y, side in zip(numbers["end"], at, mean, (-1, 1), strict=True):
                axes.annotate(
                    base if name == "sgd" else bands.label(str(name)),
                    (x, y),
                    xytext=(4 * side, 5),
                    textcoords="offset points",
                    ha="left" if side > 0 else "right",
                )
            for i, schedule in enumerate(numbers["schedule"]):
                x = numbers.at("passes", network=network, schedule=schedule).mean(axis=-1)
                y = 100 * numbers.at("test_accuracy", network=network, schedule=schedule)
                order = np.argsort(x, kind="stable")
                axes.plot(
                    x[order],
                    y.mean(axis=-1)[order],
                    markers[i],
                    color=style.color(i),
                    markersize=4,
                    alpha=0.85,
                    label=str(schedule),
                    linestyle="none",
                )
            axes.set_title(f"{network}: mean of {len(numbers['seed'])} seeds, p = 0.25, 0.5, 0.75")
            axes.set(
                xlabel="forward-backward passes per step (base alone = 1)", ylabel="test accuracy (%)", xlim=(0.75, 2.2)
            )
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=7, columnspacing=1.0)
        return figure

    def judge(self, numbers: FigureData) -> list[Claim]:
        """Cost as predicted; accuracy between the ends; late SAM against early SAM."""
        from trainers.methods.rst import MEANS

        expected = np.array([[1 + MEANS[c](p) for p in PARAMETERS] for c in SCHEDULES])
        gap = (numbers["passes"] - expected[None, :, :, None]).mean(axis=(0, 1, 2))
        accuracy = 100 * numbers["test_accuracy"]
        sgd, sam = (100 * numbers["test_accuracy_of_ends"][:, i] for i in range(2))
        every = accuracy.mean(axis=(1, 2))
        late, early = (accuracy[:, SCHEDULES.index(c)].mean(axis=(0, 1)) for c in ("piecewise1", "piecewise2"))
        return [
            Claim(
                text="A schedule costs 1 + mean p passes per step",
                quantity="measured minus 1 + mean p, mean over schedules and networks",
                published="0 (expectation)",
                ours=statistics.mean(gap),
                above=-0.05,
                below=0.05,
                unit="passes per step",
            ),
            Claim(
                text="RST is more accurate than its base alone",
                quantity="difference of test accuracy, mean over schedules and networks",
                published="above 0",
                ours=statistics.paired(every.mean(axis=0), sgd.mean(axis=0)),
                above=0.0,
                unit="percentage points",
            ),
            Claim(
                text="RST is as accurate as SAM",
                quantity="difference of test accuracy, mean over schedules and networks",
                published="close to 0",
                ours=statistics.paired(every.mean(axis=0), sam.mean(axis=0)),
                above=-1.0,
                unit="percentage points",
                note="Holds if at most one percentage point is lost.",
            ),
            Claim(
                text="SAM late (piecewise1) is better than SAM early (piecewise2)",
                quantity="difference of test accuracy, mean over p and networks",
                published="reported elsewhere (ICLR 2025); the paper's own table was not obtained",
                ours=statistics.paired(late, early),
                above=0.0,
                unit="percentage points",
                note="At equal p the two spend equal passes only on the mean over p = 0.25, 0.5, 0.75.",
            ),
        ]
