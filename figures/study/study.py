"""A study: runs what figures need, each thing once, and keeps it under the hash of its configuration.

A figure asks for tasks: trainings, and computations on the trained networks (`figures.study.tasks`). A task's
directory or file carries the hash of everything that determines its outcome, so that figures share what they have in
common, a second call runs nothing, and a killed study goes on where it was (trainings from their last checkpoint).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from figures.study.figure_data import load_arrays
from figures.study.tasks import Computation, Machine, Task, Training, needed, read_cost
from figures.study.workers import Job, Outcome, execute
from landscape.errors import unknown
from landscape.progress import Bar
from landscape.shards import Claims, Item


@dataclass(frozen=True)
class Preset:
    """How much is spent.

    Attributes:
        name: quick (a CPU, minutes), middle (real images on a CPU, an hour), gpu (ResNet-18 on real images, a GPU, an
            hour or two) or paper (a GPU, the papers' settings).
        settings: which of a figure's settings are taken: "quick", "middle", "gpu" or "paper".
        seeds: number of seeds; None: what the figure chose for these settings.
        epochs: no training is longer; None for no limit.
        samples: no measure takes more examples.
    """

    name: str
    settings: str
    seeds: int | None = None
    epochs: int | None = None
    samples: int = 4096


PRESETS = {
    "quick": Preset("quick", "quick"),
    "middle": Preset("middle", "middle"),
    "gpu": Preset("gpu", "gpu"),
    "paper": Preset("paper", "paper"),
    # For the tests: everything is run and drawn, nothing is learned.
    "smoke": Preset("smoke", "quick", seeds=2, epochs=2, samples=128),
    "gpu-smoke": Preset("gpu-smoke", "gpu", seeds=2, epochs=2, samples=128),
}


class Study:
    """What has been run below a directory, and the means to run the rest.

    Args:
        directory: results are kept in `runs/` and `results/` below it.
        preset: how much is spent.
        seeds: number of seeds of every figure, whatever the preset says.
        device: where networks are trained and measured.
        workers: processes that share the tasks; trainings in one process with 1.
        data_dir: where data files lie.
        claims: tasks are shared with the other processes that claim them; this one runs one at a time.
    """

    def __init__(
        self,
        directory: str | Path,
        preset: Preset | str = "quick",
        *,
        seeds: int | None = None,
        device: str = "cpu",
        workers: int = 1,
        data_dir: str | None = None,
        claims: Claims | None = None,
    ) -> None:
        if isinstance(preset, str):
            if preset not in PRESETS:
                raise unknown("preset", preset, PRESETS)
            preset = PRESETS[preset]
        self.directory, self.preset = Path(directory), preset
        self._seeds, self._workers, self._claims = seeds, workers, claims
        self._machine = Machine(device, data_dir)

    # -- what figures ask ------------------------------------------------------------------------------------------

    @property
    def data_dir(self) -> str | None:
        """Where data files lie; None: where `trainers.data.data_directory` looks."""
        return self._machine.data_dir

    def seeds(self, quick: int, paper: int = 5) -> list[int]:
        """The seeds of a figure: --seeds, else the preset's, else what the figure chose."""
        return list(range(self._seeds or self.preset.seeds or self.choose(quick, paper)))

    def choose(self, quick: Any, paper: Any, middle: Any = None, gpu: Any = None) -> Any:
        """The settings that the preset takes; for middle and gpu the quick ones where there are no others."""
        chosen = {"quick": quick, "middle": middle, "gpu": gpu, "paper": paper}[self.preset.settings]
        return quick if chosen is None else chosen

    def training(self, method: str, seed: int, *, arguments: dict[str, Any] | None = None, **settings: Any) -> Training:
        """A training within the limits of the preset."""
        limit = self.preset.epochs
        if limit is not None:
            # A budget in passes is at most what SAM spends in these epochs.
            for name, most in (("epochs", limit), ("budget_passes", 2.0 * limit)):
                if settings.get(name):
                    settings[name] = min(settings[name], most)
            if settings.get("budget_seconds"):
                settings["budget_seconds"] = min(settings["budget_seconds"], 0.2)
        if settings.get("budget_passes") or settings.get("budget_seconds"):
            settings.pop("epochs", None)  # the budget ends the run
        return Training(method, arguments or {}, {**settings, "seed": seed})

    def samples(self, wanted: int) -> int:
        """Examples of a measure within the limits of the preset."""
        return min(wanted, self.preset.samples)

    def rounds(self, wanted: int) -> int:
        """Rounds of a timing within the limits of the preset."""
        return wanted if self.preset.epochs is None else min(wanted, 2)

    def epochs(self, wanted: int) -> int:
        """Epochs within the limits of the preset."""
        return wanted if self.preset.epochs is None else min(wanted, self.preset.epochs)

    def history(self, training: Training) -> dict[str, np.ndarray]:
        """The columns of a finished training's history.csv."""
        from figures.page.analysis import read_history

        rows = read_history(self.path(training) / "history.csv") or []
        return {name: np.array([row[name] for row in rows]) for name in rows[0]}

    def result(self, computation: Computation) -> dict[str, np.ndarray]:
        """What a finished computation returned."""
        return load_arrays(self.path(computation))

    # -- running ---------------------------------------------------------------------------------------------------

    def path(self, task: Task) -> Path:
        """Where a task's outcome lies: a directory or a file."""
        # A time belongs to the kind of device that it was measured on.
        kind = self._machine.device.partition(":")[0]
        name = f"{task.name}-{kind}" if task.timed and kind != "cpu" else task.name
        if isinstance(task, Training):
            return self.directory / "runs" / name
        return self.directory / "results" / f"{name}.h5"

    def done(self, task: Task) -> bool:
        """Whether it need not be run."""
        path = self.path(task)
        return (path / "done.json").is_file() if isinstance(task, Training) else path.is_file()

    def spent(self, tasks: Sequence[Task]) -> dict[str, float]:
        """Seconds that finished tasks took, with the trainings that they need, each counted once.

        `seconds` are those of the clock, `processor_seconds` those of one core; `alone_seconds` is the part of the
        clock's during which nothing else ran.
        """
        every = {self.path(t): t for task in tasks for t in (*needed(task), task)}
        costs = [(t, read_cost(path)) for path, t in every.items()]
        total = {k: sum(c[k] for _, c in costs) for k in ("seconds", "processor_seconds")}
        return total | {"alone_seconds": sum(c["seconds"] for t, c in costs if t.timed)}

    def missing(self, tasks: Sequence[Task]) -> list[Task]:
        """Tasks that have to be run, each once and behind the trainings that it needs; in the given order."""
        missing: dict[Path, Task] = {}
        for task in tasks:
            if not self.done(task):
                for t in (*(t for t in needed(task) if not self.done(t)), task):
                    missing.setdefault(self.path(t), t)
        return list(missing.values())

    def run(self, tasks: Sequence[Task], ended: Callable[[Task, Exception | None], None] | None = None) -> int:
        """Run what is missing; returns how many tasks that were.

        Tasks are started in their order, those that measure time behind all others and each alone.

        Args:
            tasks: what is asked for; the trainings that they need are run, too.
            ended: called with every task that has been run and the error that ended it, or None; a task whose training
                failed counts as failed with the same error. Without it the first error is raised.
        """
        missing = self.missing(tasks)
        jobs = [Job(t, self.path(t), [self.path(n) for n in needed(t)], self._machine) for t in missing]
        with Bar("figures", len(missing)) as bar:
            outcomes = execute(jobs, self._workers) if self._claims is None else self._shared(jobs, self._claims)
            for job, error in outcomes:
                bar.note(job.task.name)
                bar.advance()
                if ended is not None:
                    ended(job.task, error)
                elif error is not None:
                    raise error
        return len(missing)

    def once(self, name: str, run: Callable[[], object]) -> None:
        """Run what is made of finished tasks; in one process where they are shared, while the others wait for it."""
        if self._claims is None:
            run()
        else:
            self._claims.once(name, run)

    def _shared(self, jobs: Sequence[Job], claims: Claims) -> Iterator[Outcome]:
        """Run jobs that nobody else has, and wait for the others; what fails here is not tried again here.

        Those that measure time are one item behind all others: one process runs them while the rest waits.
        """
        failed: dict[Path, Exception] = {}

        def settled(job: Job) -> bool:
            return job.path in failed or self.done(job.task)

        def item(name: str, part: Sequence[Job], ready: Callable[[], bool]) -> Item:
            def run() -> None:
                for job, error in execute([j for j in part if not settled(j)], 1, failed):
                    if error is not None:
                        failed[job.path] = error

            return Item(name, run, lambda: all(map(settled, part)), ready)

        def needs(job: Job) -> Callable[[], bool]:
            inputs = [j for j in together.values() if j.path in job.inputs]
            return lambda: all(map(settled, inputs))

        together = {j.task.name: j for j in jobs if not j.alone}
        alone = [j for j in jobs if j.alone]
        items = [item(name, [job], needs(job)) for name, job in together.items()]
        if alone:
            items.append(item("alone", alone, lambda: all(map(settled, together.values()))))
        for one in claims.settle(items):
            for job in [together[one.name]] if one.name in together else alone:
                yield job, failed.get(job.path)
