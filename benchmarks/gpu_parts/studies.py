"""Part c: the studies of the preset gpu, one training after the other, the most telling first.

A training and everything that is computed on it are one piece of work, so that no result waits for weights that stay
behind on a machine: `studies.tar.gz` holds all numbers without the weights, and another machine goes on from it. A
figure is drawn and judged with as many seeds as are complete; with fewer than three its claims stay undecided.
"""

from __future__ import annotations

import shutil
import tarfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from figures import FIGURES
from figures.paper.ksam_tradeoff import SHARES
from figures.study import recipes
from figures.study.figure import make
from figures.study.figure_data import load_arrays
from figures.study.study import Study
from figures.study.tasks import Computation, Task, Training, needed
from gpu_parts.measuring import Rows
from gpu_parts.sizes import Sizes
from landscape.files import atomic, read_json
from landscape.statistics import mean
from trainers import train
from trainers.data import data_directory
from trainers.data.idx import available
from trainers.loop.run_directory import read_history

FIRST = ("sgd", "sam", "asam", "saf", "k-sam")
PASSES = {"sgd": 1.0, "adam": 1.0, "saf": 1.1, "k-sam": 1.2, "subset-sam": 1.4, "looksam": 1.4, "mesa": 1.4}
PASSES |= {"rst": 1.6, "g-rst": 1.6, "esam": 1.8}
"""Time of a step in SGD's, roughly, until a run has told; others 2.2."""
MEASURED = {"sam_sharpness": {"rho": 0.05}, "hessian_top_eigenvalues": {"k": 1, "tol": 0.03}}
KEPT = ("*.json", "*.csv", "*.h5", "*.md", "*.png", "*.pdf")
HEADER = ["data", "method", "seeds", "test accuracy, %", "train - test, points", "SAM sharpness", "lambda_max"]
HEADER += ["seconds an epoch"]


@dataclass(frozen=True)
class Piece:
    """A training with the computations on it, or one timing."""

    tasks: Sequence[Task]

    @property
    def training(self) -> Training | None:
        """Of a timing None."""
        first = self.tasks[0]
        return first if isinstance(first, Training) else None

    @property
    def name(self) -> str:
        """Of the first task, with its seed."""
        run = self.training
        return self.tasks[0].name if run is None else f"{run.name} seed {run.settings['seed']}"


@dataclass(frozen=True)
class Studies:
    """What has been trained below a folder, and what comes next.

    Args:
        folder: holds `study` and `figures`.
        archive: all numbers without the weights.
        sizes: says which preset, figures and seeds.
        device: where to train.
        data_dir: where Fashion-MNIST and, where it is at hand, cifar10.npz lie.
    """

    folder: Path
    archive: Path
    sizes: Sizes
    device: torch.device
    data_dir: str | None

    def study(self, seeds: int) -> Study:
        """The study with so many seeds; all share what has been run."""
        return Study(
            self.folder / "study", self.sizes.preset, seeds=seeds, device=str(self.device), data_dir=self.data_dir
        )

    @cached_property
    def whole(self) -> Study:
        """The study with all seeds."""
        return self.study(self.sizes.seeds)

    def lacks(self) -> str:
        """Why nothing can be trained; empty where it can."""
        if self.run("sgd", 0).settings["data"] != "fashion-mnist" or available("fashion-mnist", self.data_dir):
            return ""
        return f"Fashion-MNIST is not in {data_directory(self.data_dir)}: say where its four files are by --data-dir"

    def run(self, method: str, seed: int, **changes: Any) -> Training:
        """A training on the images of most figures; K-SAM with a third of the batch."""
        if method == "k-sam":
            batch = self.run("sgd", seed).settings["batch_size"]
            changes["arguments"] = {"k": round(SHARES[2] * batch)}
        return recipes.images(self.whole, method, seed, **changes)

    # -- what there is to do -------------------------------------------------------------------------------------------

    @cached_property
    def pieces(self) -> list[Piece]:
        """Seed by seed the methods of `FIRST`, then all others; timings behind the first seed."""
        plans = [t for name in self.sizes.figures for t in FIGURES[name]().plan(self.whole)]
        runs: dict[str, Training] = {}
        for seed in range(self.sizes.seeds):
            here = [self.run(method, seed) for method in FIRST]
            here += [t for task in plans for t in self._trainings(task) if t.settings["seed"] == seed]
            here.append(self.run("sgd", seed, budget_passes=2.0 * here[0].settings["epochs"]))
            runs |= {t.name: t for t in here if t.name not in runs}
        computed = {c.name: c for c in (*map(self.measured, runs.values()), *plans) if isinstance(c, Computation)}
        pieces = [Piece([t, *(c for c in computed.values() if needed(c) == (t,))]) for t in runs.values()]
        timings = [Piece([c]) for c in computed.values() if not needed(c)]
        first = sum(t.settings["seed"] == 0 for t in runs.values())
        return [*pieces[:first], *timings, *pieces[first:]]

    @staticmethod
    def _trainings(task: Task) -> Sequence[Training]:
        return (task,) if isinstance(task, Training) else needed(task)

    def measured(self, run: Training) -> Computation:
        """SAM sharpness and lambda_max of a finished training."""
        arguments = {"wanted": MEASURED, "samples": self.whole.samples(2048)}
        return Computation("figures.study.computations:measures", (run,), arguments)

    def done(self, piece: Piece) -> bool:
        """Whether all of it is there."""
        return all(map(self.whole.done, piece.tasks))

    def do(self, piece: Piece) -> None:
        """Run what is missing; a training whose weights another machine kept is trained anew."""
        run = piece.training
        if run is not None:
            path = self.whole.path(run)
            if self.whole.done(run) and not (path / "ckpt.pt").exists():
                shutil.rmtree(path)
        self.whole.run(piece.tasks)

    # -- how long it takes ---------------------------------------------------------------------------------------------

    def speed(self) -> dict[str, Any]:
        """Images a second of SGD's second epoch."""
        run = self.run("sgd", 0)
        settings = {k: v for k, v in run.settings.items() if k not in ("keep_every", "save_every", "epochs")}
        start = time.perf_counter()
        ended = train("sgd", device=self.device, **{**settings, "epochs": 2, "warmup": 0, "data_dir": self.data_dir})
        whole, seconds = time.perf_counter() - start, [row["seconds"] for row in ended.history]
        examples = ended.history[0]["forward_examples"]
        return {
            "images_per_second": examples / (seconds[1] - seconds[0]),
            "epoch_seconds": (seconds[1] - seconds[0]) + 0.1 * max(whole - seconds[1], 0.0),
            "examples": examples,
        }

    def expected(self, piece: Piece, speed: dict[str, Any]) -> float:
        """Seconds of what is missing of it: by a finished run of the same method, else by the speed of SGD."""
        run = piece.training
        if run is None:
            return 120.0
        seconds, path = 10.0 + 5.0 * len(piece.tasks), self.whole.path(run)
        epochs = run.settings.get("epochs") or run.settings["budget_passes"]
        left = epochs - (len(read_history(path / "history.csv")) if (path / "ckpt.pt").exists() else 0)
        for other in (p.training for p in self.pieces if p.training):
            alike = (other.method, recipes.timed(other)) == (run.method, recipes.timed(run))
            if alike and self.whole.done(other):
                spent = read_json(self.whole.path(other) / "done.json")["seconds"]
                return seconds + left * spent / max(len(self.whole.history(other)["epoch"]), 1)
        share = 1.0 if run.settings["data"] == self.run("sgd", 0).settings["data"] else 0.25
        return seconds + left * share * PASSES.get(run.method, 2.2) * speed.get("epoch_seconds", 2.0)

    # -- what came out -------------------------------------------------------------------------------------------------

    def rows(self) -> Rows:
        """One row a data set, method and variant: means over the seeds that are done, with 95% intervals from three."""
        groups: dict[tuple[str, str], list[Training]] = {}
        for piece in self.pieces:
            run = piece.training
            if run is not None and self.done(piece):
                groups.setdefault((recipes.describe(run)["data"], _label(run)), []).append(run)
        return [[data, label, len(runs), *self._cells(runs)] for (data, label), runs in sorted(groups.items())]

    def _cells(self, runs: Sequence[Training]) -> Iterator[str]:
        last = [{k: v[-1] for k, v in self.whole.history(run).items()} for run in runs]
        values = [load_arrays(self.whole.path(self.measured(run))) for run in runs]
        yield _estimate([100 * row["test_accuracy"] for row in last])
        yield _estimate([100 * (row["train_accuracy"] - row["test_accuracy"]) for row in last])
        for name in MEASURED:
            yield _estimate([float(v[name]) for v in values])
        yield f"{min(row['seconds'] / row['epoch'] for row in last):.3g}"

    def table(self) -> dict[str, Any]:
        """The header and `rows`."""
        return {"header": HEADER, "rows": self.rows()}

    def figures(self) -> dict[str, Any]:
        """Draw those whose tasks are done: `drawn` with as many seeds as are complete, and what `failed`."""
        drawn: dict[str, int] = {}
        failed: dict[str, str] = {}
        for name in self.sizes.figures:
            seeds = next((n for n in range(self.sizes.seeds, 0, -1) if self._complete(name, n)), 0)
            try:
                if seeds:
                    drawn[name] = self._draw(name, seeds)
            except Exception as error:  # the other figures are drawn
                failed[name] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        self.pack()
        return {"drawn": drawn, "failed": failed}

    def _complete(self, name: str, seeds: int) -> bool:
        study = self.study(seeds)
        return not study.missing(list(FIGURES[name]().plan(study)))

    def _draw(self, name: str, seeds: int) -> int:
        file = self.folder / "figures" / f"{name}-verdict.json"
        if not file.exists() or read_json(file)["facts"].get("seeds") != seeds:
            make([name], self.study(seeds), self.folder / "figures")
        return seeds

    def pack(self) -> None:
        """Write the archive: numbers of finished pieces and figures, no weights."""
        runs = {self.whole.path(p.training) for p in self.pieces if p.training and self.done(p)}
        with atomic(self.archive) as temporary, tarfile.open(temporary, "w:gz") as archive:
            for pattern in KEPT:
                for path in sorted(self.folder.rglob(pattern)):
                    if "runs" not in path.relative_to(self.folder).parts or path.parent in runs:
                        archive.add(path, path.relative_to(self.folder))

    def unpack(self) -> None:
        """Take up what another machine left in the archive and is not here."""
        if not self.archive.exists():
            return
        with tarfile.open(self.archive) as archive:
            for member in archive.getmembers():
                if not (self.folder / member.name).exists():
                    archive.extract(member, self.folder, filter="data")


def _label(run: Training) -> str:
    base = f" on {run.settings['base']}" if run.method not in ("sgd", "adam") and run.settings["base"] != "sgd" else ""
    arguments = "".join(f", {k} = {v}" for k, v in run.arguments.items())
    passes = f", {run.settings['budget_passes']:g} passes" if run.settings.get("budget_passes") else ""
    return f"{run.method}{base}{arguments}{passes}"


def _estimate(values: Sequence[float]) -> str:
    if len(values) < 3:
        return f"{sum(values) / len(values):.4g}"
    e = mean(values)
    return f"{e.value:.4g} [{e.low:.4g}, {e.high:.4g}]"
