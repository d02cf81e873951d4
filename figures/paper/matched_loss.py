"""Every method against SGD: accuracy and sharpness at the end, and beside SGD with the same training loss.

A network that was trained less has larger gradients and another curvature: a method that stops at a higher loss may
look sharper or flatter for that alone. So each final network is compared a second time, with shorter runs of SGD that
end at its training loss. Those are whole runs, whose learning rate falls to 0 as well: a point in the middle of one
run, where the rate is high, has twice the sharpness of a finished one with the same loss.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from figures.drawing import bands, families, style
from figures.paper.all_methods import methods, noisy_runs
from figures.paper.saf_fig3 import log_ratio
from figures.study import recipes
from figures.study.figure import Figure
from figures.study.figure_data import FigureData
from figures.study.study import Study
from figures.study.tasks import Computation, Training
from figures.study.verdict import Claim
from landscape import statistics
from landscape.registry import register
from trainers.loop.settings import BASES, DEFAULT_LR

WHEN = ("end", "level")
LEVEL = 0.2
"""Training loss (nats): the file holds the measures at the first kept epoch below it as well."""
SHORTER = (0.1, 0.2, 1 / 3, 0.5, 0.7)
"""Lengths of SGD's shorter runs, as shares of the run."""
RADII = (0.05, 0.1, 0.2)
FASHION = "fashion-mnist:train=2048"


def runs(study: Study) -> dict[tuple[str, int], Training]:
    """(method, seed) -> training whose epochs are kept: of `all-methods` on clean labels; in the middle `fashion`."""
    keys = [(m, s) for m in methods() for s in study.seeds(3, 5)]
    if study.choose(False, False, True):
        return {(m, s): fashion(study, m, s) for m, s in keys}
    noisy = noisy_runs(study)
    return {(m, s): noisy[m, 0.0, s] for m, s in keys}


def fashion(study: Study, method: str, seed: int, **changes: Any) -> Training:
    """ResNet-8 on 2,048 images of Fashion-MNIST, its epochs kept.

    Three stages of 16, 32 and 64 channels at 14, 7 and 4 pixels per side; SGD at 0.1 (Adam at 0.001, Lion at
    0.0001), cosine schedule, batches of 64. During training 1,000 test images are looked at, at the end all 10,000.
    """
    settings = {"data": f"{FASHION},test=1000", "model": "resnet:depth=8,width=16,stride=2", "epochs": 15}
    settings |= {"lr": DEFAULT_LR.get(method, DEFAULT_LR["sgd"]), "batch_size": 64}
    return recipes.features(study, method, seed, **{**settings, "keep_every": 1, "save_every": 15, **changes})


def computation(study: Study, run: Training) -> Computation:
    """Losses along the run, measures at the end and at the level, test accuracy."""
    keep = run.settings["keep_every"]
    arguments = {
        "epochs": list(range(keep, run.settings["epochs"] + 1, keep)),
        "level": LEVEL,
        "radii": list(RADII),
        "samples": study.samples(study.choose(1024, 2048, 512)),
        "test": study.choose(None, None, FASHION),
    }
    return Computation("figures.study.computations:at_loss", (run,), arguments)


def shorter(run: Training) -> list[Training]:
    """Runs like this one that end earlier, their learning rates at 0 as well; the longest is the run itself."""
    whole = run.settings["epochs"]
    lengths = sorted({max(1, round(whole * share)) for share in SHORTER} - {whole})
    ended = [Training(run.method, run.arguments, {**run.settings, "epochs": e, "keep_every": e}) for e in lengths]
    return [*ended, run]


def at_equal_loss(losses: np.ndarray, values: np.ndarray, loss: float) -> float:
    """Value of a measure in a run that would end at this training loss; nan if none of the runs gets around it.

    A power law between the two lengths around it, of several such pairs the one of the longest runs.

    Args:
        losses: final training losses, of the shortest run first.
        values: the measure there.
        loss: the loss that is looked for.
    """
    x, y = np.log(losses), np.log(values)
    above = np.flatnonzero(x >= np.log(loss))
    if not len(above) or above[-1] + 1 == len(x):
        return float("nan")
    i = above[-1]
    part = (x[i] - np.log(loss)) / (x[i] - x[i + 1])
    return float(np.exp(y[i] + part * (y[i + 1] - y[i])))


@register("matched-loss", source="ours")
class MatchedLoss(Figure):
    """Every method against SGD, paired by seed: accuracy and flatness, also beside SGD runs of the same loss."""

    title = "Are the minima flatter?"

    def plan(self, study: Study) -> list[Any]:
        """Every method's trainings, SGD's shorter ones, and what is measured on each."""
        return [*(computation(study, t) for t in runs(study).values()), *(c for row in self._sgd(study) for c in row)]

    def _sgd(self, study: Study) -> list[list[Computation]]:
        return [[computation(study, t) for t in shorter(runs(study)["sgd", s])] for s in study.seeds(3, 5)]

    def collect(self, study: Study) -> FigureData:
        """Accuracies, losses and flatness by method and seed."""
        trainings, names, seeds = runs(study), methods(), study.seeds(3, 5)
        results = {key: study.result(computation(study, t)) for key, t in trainings.items()}
        first = computation(study, trainings["sgd", seeds[0]])
        numbers = FigureData(facts={**recipes.describe(*trainings.values()), "seeds": len(seeds), "level": LEVEL})
        numbers.facts.update(samples=first.arguments["samples"], hyperparameters="each method's documented defaults")
        for name, values in (("method", names), ("seed", seeds), ("when", WHEN), ("radius", RADII)):
            numbers.axis(name, values)
        numbers.axis("kept_epoch", first.arguments["epochs"])

        def add(name: str, key: str, *more: str, unit: str = "nats") -> None:
            values = [[results[m, s][key] for s in seeds] for m in names]
            numbers.add(name, ("method", "seed", *more), values, unit)

        add("test_accuracy", "test_accuracy", unit="share of examples")
        add("test_loss", "test_loss")
        add("train_accuracy", "accuracy", "when", unit="share of examples")
        add("train_loss", "loss", "when")
        add("sam_sharpness", "sam_sharpness", "when", "radius")
        add("first_order", "first_order", "when", "radius")
        add("hessian_top_eigenvalue", "eigenvalue", "when")
        add("train_loss_curve", "curve", "kept_epoch")
        add("epoch_at_level", "epoch", unit="epochs")
        numbers.axis("sgd_epochs", [t.settings["epochs"] for t in shorter(trainings["sgd", seeds[0]])])
        ended = [[study.result(c) for c in row] for row in self._sgd(study)]
        for name, key, more in (
            ("loss", "loss", ()),
            ("sam_sharpness", "sam_sharpness", ("radius",)),
            ("hessian_top_eigenvalue", "eigenvalue", ()),
        ):
            finals = [[r[key][0] for r in row] for row in ended]
            numbers.add(f"sgd_{name}", ("seed", "sgd_epochs", *more), finals, "nats")
        return numbers

    def draw(self, numbers: FigureData) -> Any:
        """A row per method, by family; columns: accuracy, training loss, flatness against SGD's."""
        import matplotlib.pyplot as plt

        others = [str(m) for m in numbers["method"] if m != "sgd"]
        order = sorted(others, key=lambda m: float(np.mean(against(numbers, "sam_sharpness", m, radius=RADII[0]))))
        shown = families.rows(order)
        figure, panels = plt.subplots(
            1, 5, figsize=(style.PAGE, 0.19 * shown.count + 1.3), sharey=True, layout="constrained"
        )

        def dots(axes: Any, values: dict[str, np.ndarray], *, log: bool, same_loss: bool = False) -> None:
            mean, half = bands.interval(np.stack(list(values.values())), axis=-1)
            ends = np.stack([mean - half, mean + half])
            if log:
                mean, ends = np.exp(mean), np.exp(ends)
            bars = np.nan_to_num(np.abs(ends - mean))
            ink = {"color": style.color(1), "mfc": "white"} if same_loss else {"color": "#333333"}
            look = {**ink, "fmt": "o", "markersize": 3, "elinewidth": 0.6, "capsize": 0}
            text = "of the same loss, if any" if same_loss else "beside SGD runs as long"
            heights = [shown.methods[m] + (-0.18 if same_loss else 0.18) for m in values]
            axes.errorbar(mean, heights, xerr=bars, label=text, **look)

        accuracy = {m: 100 * numbers.at("test_accuracy", method=m) for m in ("sgd", *order)}
        dots(panels[0], {m: accuracy[m] - accuracy["sgd"] for m in order}, log=False)
        losses = {m: np.log(numbers.at("train_loss", method=m, when="end")) for m in ("sgd", *order)}
        dots(panels[1], {m: losses[m] for m in order}, log=True)
        columns = [("sam_sharpness", {"radius": r}) for r in (RADII[0], RADII[-1])]
        for axes, (name, at) in zip(panels[2:], [*columns, ("hessian_top_eigenvalue", {})], strict=True):
            dots(axes, {m: against(numbers, name, m, **at) for m in order}, log=True)
            dots(axes, {m: beside(numbers, name, m, **at) for m in order}, log=True, same_loss=True)
        for axes, sgd in zip(panels, (0, float(np.exp(losses["sgd"].mean())), 1, 1, 1), strict=True):
            axes.axvline(sgd, color="#888888", linewidth=0.8, label="SGD; flatness: left is flatter")
        families.frame(panels, shown)
        for axes in panels[1:]:
            axes.set_xscale("log")
            style.few_log_ticks(axes)
        sharpness = [f"SAM sharpness\n$\\rho$ = {r:g}" for r in (RADII[0], RADII[-1])]
        titles = ["test accuracy\nminus SGD's", "training loss\nat the end", *sharpness]
        titles.append("$\\lambda_{max}$ of the\nHessian")
        units = ("percentage points", "nats", *["ratio to SGD's"] * 3)
        for axes, title, unit in zip(panels, titles, units, strict=True):
            axes.set(xlabel=unit, title=title)
        handles, texts = panels[4].get_legend_handles_labels()
        figure.legend(
            [*handles[1:], handles[0]], [*texts[1:], texts[0]],
            loc="outside lower center", ncols=3, handletextpad=0.3, columnspacing=1.5,
        )  # fmt: skip
        return figure

    def judge(self, numbers: FigureData) -> list[Claim]:
        """Each sharpness-aware method against SGD: sharpness and largest eigenvalue at equal length."""
        claims = []
        for method in (str(m) for m in numbers["method"] if m not in BASES):
            loss, sgd = (numbers.at("train_loss", method=m, when="end").mean() for m in (method, "sgd"))
            name = bands.label(method)
            for quantity, text, at in (
                ("sam_sharpness", f"SAM sharpness at rho {RADII[0]:g}", {"radius": RADII[0]}),
                ("hessian_top_eigenvalue", "the largest Hessian eigenvalue", {}),
            ):
                there = statistics.mean(beside(numbers, quantity, method, **at), "paired t")
                reached = np.isfinite(there.low)
                equal = f"{there.value:+.2f} [{there.low:+.2f}, {there.high:+.2f}]" if reached else "not in every seed"
                claims.append(
                    Claim(
                        text=f"{name} lowers {text}",
                        quantity=f"ln({name} / SGD) at the end",
                        published="below 0",
                        ours=statistics.mean(against(numbers, quantity, method, **at), "paired t"),
                        below=0.0,
                        note=f"{name}: training loss {loss:.3f}, SGD {sgd:.3f}; beside SGD runs of its loss: {equal}.",
                    )
                )
        return claims


def against(numbers: FigureData, name: str, method: str, **at: Any) -> np.ndarray:
    """ln(method / SGD) of every seed, at the end of equally long runs."""
    return log_ratio(*(numbers.at(name, method=m, when="end", **at) for m in (method, "sgd")))


def of_the_same_loss(numbers: FigureData, name: str, method: str, **at: Any) -> np.ndarray:
    """SGD's value of every seed in a run that ends at the method's training loss; nan where there is none."""
    wanted, values = numbers.at("train_loss", method=method, when="end"), numbers.at(f"sgd_{name}", **at)
    return np.array([at_equal_loss(*x) for x in zip(numbers["sgd_loss"], values, wanted, strict=True)])


def beside(numbers: FigureData, name: str, method: str, **at: Any) -> np.ndarray:
    """ln(method / SGD) of every seed, at the end of runs with the same training loss."""
    return log_ratio(numbers.at(name, method=method, when="end", **at), of_the_same_loss(numbers, name, method, **at))
