"""Accuracy and cost of K-SAM on text, over K, against SGD, AdamW, SAM and ESAM."""

from __future__ import annotations

from pathlib import Path
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
from trainers.data import data_directory

SEEDS = 4
BATCH = 32
SHARES = (0.25, 1 / 3, 0.5, 0.75)
PLAIN, OTHERS = "adamw", ("sgd", "sam", "esam")
GLUE = ("SST-2", "MRPC", "CoLA")


@register("ksam-text", source="K-SAM paper, its language models (there BERT on GLUE)")
class Text(Figure):
    """Test accuracy of K-SAM on text over its time, for several K, against AdamW (its base), SGD, SAM and ESAM."""

    title = "K-SAM on text: accuracy against time"

    def note(self, study: Study) -> str:
        """Where the preset paper finds no task of GLUE."""
        if study.choose(True, False, True, True) or self._glue(study):
            return ""
        where = data_directory(study.data_dir) / "glue"
        return f"no task of GLUE ({', '.join(GLUE)}, each with train.tsv and dev.tsv) is in {where}: docstrings instead"

    def _glue(self, study: Study) -> dict[str, str]:
        """Tasks of GLUE in the folder of data sets: a name -> the data set."""
        folders = {task: (data_directory(study.data_dir) / "glue" / task).absolute() for task in GLUE}
        return {task: f"glue:{folder}" for task, folder in folders.items() if (folder / "train.tsv").is_file()}

    def _tasks(self, study: Study) -> dict[str, str]:
        """What is classified: a name -> the data set."""
        quick = {"docstrings": "docstrings:length=32,train=2000,test=1000"}
        return study.choose(quick, self._glue(study) or {"docstrings": "docstrings:length=128"})

    def _variants(self) -> dict[str, tuple[str, dict[str, Any]]]:
        named: dict[str, tuple[str, dict[str, Any]]] = {bands.label(m): (m, {}) for m in (PLAIN, *OTHERS)}
        return named | {f"K = {_size(share)}": ("k-sam", {"k": _size(share)}) for share in SHARES}

    def _training(self, study: Study, data: str, method: str, arguments: dict[str, Any], seed: int) -> Training:
        """Everything on AdamW at its default rate, SGD at its own; gradients are clipped at 1, as BERT's."""
        settings = study.choose(
            {"model": "bert-small", "epochs": 6}, {"model": "bert-small:dim=256,depth=4,heads=8", "epochs": 10}
        )
        base = {} if method in ("sgd", PLAIN) else {"base": PLAIN}
        shared = {"data": data, "batch_size": BATCH, "clip": 1.0, "save_every": 10}
        return study.training(method, seed, arguments=arguments, **settings, **base, **shared)

    def _runs(self, study: Study) -> dict[tuple[str, str, int], Training]:
        return {
            (task, name, s): self._training(study, data, method, arguments, s)
            for task, data in self._tasks(study).items()
            for name, (method, arguments) in self._variants().items()
            for s in study.seeds(SEEDS)
        }

    def _speed(self, study: Study) -> Computation:
        """Of the first task: the length of the texts, and so the cost of a step, is the same for all."""
        data = next(iter(self._tasks(study).values()))
        specs = []
        for method, arguments in self._variants().values():
            settings = self._training(study, data, method, arguments, 0).settings
            own = {k: settings[k] for k in ("base",) if k in settings}
            specs.append({"method": method, "arguments": arguments, "first": 1, "settings": own})
        shared = {k: settings[k] for k in ("data", "model", "batch_size", "clip")} | {"epochs": study.epochs(2)}
        arguments = {"specs": specs, "settings": shared, "rounds": study.rounds(study.choose(3, 6))}
        return Computation("figures.study.computations:epoch_seconds", (), arguments, timed=True)

    def plan(self, study: Study) -> list[Task]:
        """K-SAM at four K, four other methods, and an interleaved timing."""
        return [*self._runs(study).values(), self._speed(study)]

    def collect(self, study: Study) -> FigureData:
        """Accuracies and times."""
        runs, tasks, seeds, names = self._runs(study), self._tasks(study), study.seeds(SEEDS), self._variants()
        seconds = study.result(self._speed(study))["seconds"]
        numbers = FigureData(facts={**recipes.describe(*runs.values()), "seeds": len(seeds), "tasks": list(tasks)})
        if not self._glue(study) or "docstrings" in tasks:
            numbers.facts["in place of"] = "GLUE"
        numbers.axis("task", tasks)
        numbers.axis("variant", names)
        numbers.axis("seed", seeds)
        numbers.axis("round", range(seconds.shape[1]))
        histories = {key: study.history(training) for key, training in runs.items()}
        for column in ("test_accuracy", "train_accuracy"):
            values = [[[histories[t, n, s][column][-1] for s in seeds] for n in names] for t in tasks]
            numbers.add(column, ("task", "variant", "seed"), values, "share of texts")
        numbers.add("epoch_seconds", ("variant", "round"), seconds, "s")
        return numbers

    def draw(self, numbers: FigureData) -> Any:
        """A panel a task: test accuracy over the time of an epoch, in that of AdamW."""
        import matplotlib.pyplot as plt

        tasks = [str(task) for task in numbers["task"]]
        width = style.COLUMN if len(tasks) == 1 else style.PAGE
        figure, panels = plt.subplots(1, len(tasks), figsize=(width, 2.9), layout="constrained", squeeze=False)
        plain = numbers.at("epoch_seconds", variant=bands.label(PLAIN))
        times = (numbers["epoch_seconds"] / plain).mean(axis=-1)
        for axes, task in zip(panels[0], tasks, strict=True):
            mean, half = bands.interval(100 * numbers.at("test_accuracy", task=task), axis=-1)
            names = [str(name) for name in numbers["variant"]]
            chosen = [i for i, name in enumerate(names) if name.startswith("K")]
            axes.plot(times[chosen], mean[chosen], color=bands.color("k-sam"), linewidth=0.8)
            for i, name in enumerate(names):
                ink = bands.color("k-sam" if i in chosen else name.lower())
                reach = float(np.nan_to_num(half[i]))
                axes.errorbar(
                    [times[i]], [mean[i]], [reach], fmt="s" if i in chosen else "o", color=ink, elinewidth=0.8
                )
                above = i in chosen  # the others are named beside their dots: a K may cost what they do
                axes.annotate(
                    name,
                    (times[i], mean[i] + reach * above),
                    xytext=(-1, 3 + 6 * (chosen.index(i) % 2)) if above else (-4, 0),
                    textcoords="offset points",
                    color=ink,
                    ha="left" if above else "right",
                    va="bottom" if above else "center",
                    fontsize=6,
                )
            axes.set(xlabel=f"time of an epoch / that of {bands.label(PLAIN)}", ylabel="test accuracy (%)")
            axes.set_title(f"{Path(task).name}: mean and 95% interval, {len(numbers['seed'])} seeds")
            axes.margins(x=0.14, y=0.12)
        return figure

    def judge(self, numbers: FigureData) -> list[Claim]:
        """The speed of the base, SAM's accuracy; what a K of half a batch does."""
        seconds = {str(n): numbers.at("epoch_seconds", variant=n) for n in numbers["variant"]}
        plain, third, half = bands.label(PLAIN), f"K = {_size(SHARES[1])}", f"K = {_size(SHARES[2])}"
        claims = [
            Claim(
                text=f"K-SAM is as fast as its base, {plain}",
                quantity=f"time of an epoch at {third} (a third of the batch) / that of {plain}",
                published="about 1.06",
                ours=statistics.mean(seconds[third] / seconds[plain]),
                below=1.15,
                note="Passes over few examples of a small network cost more than their share.",
            ),
            Claim(
                text="K-SAM is faster than ESAM",
                quantity=f"time of an epoch at {third} / that of ESAM",
                published="0.82 (6% above SGD's against 30%)",
                ours=statistics.mean(seconds[third] / seconds["ESAM"]),
                below=1.0,
            ),
        ]
        for task in map(str, numbers["task"]):
            values = numbers.at("test_accuracy", task=task)
            names = [str(n) for n in numbers["variant"]]
            accuracy = {name: 100 * row for name, row in zip(names, values, strict=True)}
            claims += [
                _more("SAM", plain, task, accuracy),
                _comparable(third, task, statistics.paired(accuracy[third], accuracy["SAM"])),
                _comparable(half, task, statistics.paired(accuracy[half], accuracy["SAM"])),
                _more(third, plain, task, accuracy),
                _more(half, plain, task, accuracy),
                _more(third, "SGD", task, accuracy),
            ]
        return claims


def _size(share: float) -> int:
    return round(share * BATCH)


def _called(name: str) -> str:
    return f"K-SAM with {name}" if name.startswith("K") else name


def _more(name: str, other: str, task: str, accuracy: dict[str, np.ndarray]) -> Claim:
    return Claim(
        text=f"On {task} {_called(name)} is more accurate than {other}",
        quantity="difference of test accuracy",
        published="above 0",
        ours=statistics.paired(accuracy[name], accuracy[other]),
        above=0.0,
        unit="percentage points",
    )


def _comparable(name: str, task: str, ours: Estimate) -> Claim:
    return Claim(
        text=f"On {task} {_called(name)} is as accurate as SAM",
        quantity="difference of test accuracy",
        published="comparable",
        ours=ours,
        above=-1.0,
        unit="percentage points",
        note="Holds if at most one percentage point is lost.",
    )
