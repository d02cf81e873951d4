"""What a figure is, and how it is made: run what is missing, write its numbers, draw and judge what was written."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from figures import FIGURES
from figures.drawing import style
from figures.study import verdict
from figures.study.figure_data import FigureData
from figures.study.study import Study
from figures.study.tasks import Task
from figures.study.verdict import Claim
from landscape.results import digest

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

FORMATS = ("pdf", "svg", "png")


class Figure(abc.ABC):
    """A figure or table of a paper. One file in figures/paper/ holds one, ``@register("name", source="...")``.

    `source` says which paper and figure it shows again.
    """

    title: ClassVar[str] = ""

    def note(self, study: Study) -> str:
        """What the person who makes the figure has to know beforehand: data that are not at hand. Empty: nothing."""
        return ""

    @abc.abstractmethod
    def plan(self, study: Study) -> Sequence[Task]:
        """Everything that has to be run."""

    @abc.abstractmethod
    def collect(self, study: Study) -> FigureData:
        """The numbers behind the figure, from what was run; nothing is computed that takes time."""

    @abc.abstractmethod
    def draw(self, numbers: FigureData) -> Drawing:
        """The picture of these numbers."""

    @abc.abstractmethod
    def judge(self, numbers: FigureData) -> list[Claim]:
        """The paper's claims against these numbers."""


class Unfinished(Exception):
    """Figures that could not be made; all others were.

    Attributes:
        errors: figure -> what stopped it.
    """

    def __init__(self, errors: dict[str, Exception]) -> None:
        self.errors = errors
        super().__init__("; ".join(f"{name}: {type(e).__name__}: {e}" for name, e in errors.items()))


def make(
    names: Sequence[str], study: Study, out: str | Path, drawn: Callable[[Path], None] | None = None
) -> list[Path]:
    """Make figures: NAME.pdf, .svg, .png, .csv, .h5 and NAME-verdict.md, .json; verdicts.md of the directory.

    A figure is drawn as soon as its own tasks are done; those that need the fewest come first.

    Args:
        names: registered figures.
        study: runs what is missing.
        out: directory of the files.
        drawn: called with each figure's PNG file when it is there.

    Returns:
        The PNG files, in the order in which they were drawn.

    Raises:
        Unfinished: some of several figures failed. A single figure's own error comes as it is.
    """
    pending = _Pending(list(dict.fromkeys(names)), study, Path(out), drawn or (lambda path: None))
    for name in pending.complete():
        pending.finish(name)
    study.run(pending.tasks(), pending.ended)
    if pending.pictures:  # of processes that share the figures each has seen its own last
        study.once(f"verdicts {pending.key}", lambda: verdict.collect(Path(out)))
    if len(pending.errors) == len(pending.figures) == 1:
        raise next(iter(pending.errors.values()))
    if pending.errors:
        raise Unfinished(pending.errors)
    return pending.pictures


class _Pending:
    """Figures that are being made: which tasks each still waits for."""

    def __init__(self, names: Sequence[str], study: Study, out: Path, drawn: Callable[[Path], None]) -> None:
        self.study, self.out, self.drawn = study, out, drawn
        self.figures = {name: FIGURES[name]() for name in names}
        self.errors: dict[str, Exception] = {}
        self.pictures: list[Path] = []
        self.waiting: dict[str, dict[Path, Task]] = {}
        self.keys: dict[str, str] = {}
        for name, figure in self.figures.items():
            try:
                plan = figure.plan(study)
                self.waiting[name] = {study.path(t): t for t in study.missing(plan)}
                self.keys[name] = digest.of_configuration([study.preset, sorted(t.name for t in plan)])[:16]
            except Exception as error:
                self.errors[name] = error

    @property
    def key(self) -> str:
        """Hash of what all figures are made of."""
        return digest.of_configuration(self.keys)[:16]

    def complete(self) -> list[str]:
        """Figures that wait for nothing."""
        return [name for name, missing in self.waiting.items() if not missing]

    def tasks(self) -> list[Task]:
        """All tasks, those of the figure that needs the fewest more first."""
        tasks: dict[Path, Task] = {}
        left = dict(self.waiting)
        while left:
            name = min(left, key=lambda n: len(left[n].keys() - tasks.keys()))
            tasks |= {path: task for path, task in left.pop(name).items() if path not in tasks}
        return list(tasks.values())

    def ended(self, task: Task, error: Exception | None) -> None:
        """A task ended: figures that waited for it alone are drawn, or fail with it."""
        path = self.study.path(task)
        for name in [n for n, missing in self.waiting.items() if path in missing]:
            if error is not None:
                self.errors[name] = error
                del self.waiting[name]
            else:
                del self.waiting[name][path]
                if not self.waiting[name]:
                    self.finish(name)

    def finish(self, name: str) -> None:
        """Collect, draw and judge a figure whose tasks are done."""
        del self.waiting[name]
        try:
            self.study.once(f"{name} {self.keys[name]}", lambda: self._write(name))
        except Exception as error:
            self.errors[name] = error
        else:
            self.pictures.append(self.out / f"{name}.png")
            self.drawn(self.pictures[-1])

    def _write(self, name: str) -> None:
        figure = self.figures[name]
        numbers = figure.collect(self.study)
        numbers = replace(numbers, facts={**caption(name, figure, self.study), **numbers.facts})
        numbers.save(self.out / f"{name}.h5")
        redraw(name, self.out)
        verdict.collect(self.out)


def redraw(name: str, out: str | Path) -> Path:
    """Draw and judge NAME.h5 again, nothing else is read."""
    figure, stem = FIGURES[name](), Path(out) / name
    numbers = FigureData.load(stem.with_name(f"{name}.h5"))
    numbers.write_csv(stem.with_name(f"{name}.csv"))
    style.save(picture(figure, numbers), stem, numbers.facts, title=figure.title, formats=FORMATS)
    verdict.write(stem, figure.judge(numbers), numbers.facts)
    return stem.with_name(f"{name}.png")


def picture(figure: Figure, numbers: FigureData) -> Drawing:
    """The figure's drawing with a line below that says what was computed."""
    with style.use():
        drawing = figure.draw(numbers)
        style.footnote(drawing, said(numbers.facts))
    return drawing


def said(facts: Mapping[str, Any]) -> str:
    """The facts that a reader of the picture needs most, in a line."""
    parts = [f"preset {facts['preset']}"]
    parts += [str(facts[k]).replace(":", " ", 1) for k in ("data", "model") if isinstance(facts.get(k), str)]
    if facts.get("in place of"):
        parts[1] += f" in place of {facts['in place of']}"
    for key, text in (("epochs", "{} epochs"), ("batch_size", "batches of {}"), ("samples", "measured on {} examples")):
        if facts.get(key):
            parts.append(text.format(facts[key]))
    if facts.get("BatchNorm"):
        parts.append(f"BatchNorm {facts['BatchNorm']}")
    count = next((f"{facts[k]} {k if facts[k] > 1 else k[:-1]}" for k in ("seeds", "networks") if facts.get(k)), None)
    shown = [f"shown: {facts['shown']}"] if facts.get("shown") else []
    return ", ".join([*parts, *([count] if count else []), *shown])


def caption(name: str, figure: Figure, study: Study) -> dict[str, Any]:
    """What every figure's caption has to say."""
    import numpy
    import torch

    import landscape

    versions = {"landscape": landscape.__version__, "torch": str(torch.__version__), "numpy": numpy.__version__}
    source = FIGURES.entry(name).facts["source"]
    facts = {"title": figure.title, "source": source, "preset": study.preset.name, "versions": versions}
    return facts | {"cost": study.spent(figure.plan(study))}
